"""A step schedule under the loss, over ranks that share parameters."""

import torch
from torch.distributed.fsdp import fully_shard

from greedylr_fused import WSD, FusedAdamW, GreedyLR
from greedylr_fused.schedules import LossSpec

WORLD = 2
GUIDED = GreedyLR(patience=0, factor=0.5, base=WSD(warmup_steps=2), smooth=False)
#: Of both ranks at each step; the mean decides.
LOSSES = [(6.0, 2.0), (1.0, 5.0), (2.0, 2.0), (9.0, 1.0), (1.0, 1.0), (0.5, 2.5), (2.0, 4.0)]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1)).double()


def sharded(rank):
    net = fully_shard(model())
    opt = FusedAdamW(net.parameters(), lr=0.5, schedule=GUIDED)
    lrs = [opt.read_lr()[0]]
    for t, losses in enumerate(LOSSES):
        if t == 3:
            opt.start_decay(4)
        net(torch.ones(2, 3, dtype=torch.float64)).mean().backward()
        opt.step(loss=losses[rank])
        lrs.append(opt.read_lr()[0])
    opt.check_ranks_agree()
    spec, wsd = LossSpec(GreedyLR(patience=0, factor=0.5, smooth=False, hold=2), [0.5]), GUIDED.base
    levels = [0.5, *(spec.observe(sum(losses) / WORLD)[0] for losses in LOSSES)]
    warm, fall = [0.0, 0.5, *[1.0] * 6], [*[1.0] * 4, *wsd.decay(4)[1:]]
    assert lrs == [level * (w * f) for level, w, f in zip(levels, warm, fall, strict=True)]


def test_every_rank_follows_curve_decay_and_the_mean_loss(ranks):
    ranks(sharded)
