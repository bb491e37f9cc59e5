"""Step schedules over ranks: sharded, under the loss, inside ZeroRedundancyOptimizer, and through its checkpoints."""

import copy
import io

import pytest
import torch
from lagging import install
from ranks import run
from torch.distributed.fsdp import fully_shard

from greedylr_fused import WSD, Cosine, FusedAdamW, GreedyLR
from greedylr_fused.schedules import LossSpec

WORLD, STEPS, SAVED = 2, 12, 5
COSINE = Cosine(STEPS, warmup_steps=3, min_lr_ratio=0.1)
GUIDED = GreedyLR(patience=0, factor=0.5, base=WSD(warmup_steps=2), smooth=False)
#: Of both ranks at each step; the mean decides.
LOSSES = [(6.0, 2.0), (1.0, 5.0), (2.0, 2.0), (9.0, 1.0), (1.0, 1.0), (0.5, 2.5), (2.0, 4.0)]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1)).double()


def train(net, opt, steps):
    """The LR shown before each step and after the last."""
    shown = [opt.param_groups[0]["lr"]]
    for _ in steps:
        net(torch.ones(2, 3, dtype=torch.float64)).mean().backward()
        opt.step()
        opt.zero_grad()
        shown.append(opt.param_groups[0]["lr"])
    return shown


def sharded(rank):
    net = fully_shard(model())
    opt = FusedAdamW(net.parameters(), lr=0.5, schedule=GUIDED)
    lrs = [opt.last_lr()[0]]
    for t, losses in enumerate(LOSSES):
        if t == 3:
            opt.start_decay(4)
        net(torch.ones(2, 3, dtype=torch.float64)).mean().backward()
        opt.step(loss=losses[rank])
        lrs.append(opt.last_lr()[0])
    opt.check_ranks_agree()
    return lrs


def zero(net):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it was not imported before

    return ZeroRedundancyOptimizer(net.parameters(), FusedAdamW, lr=0.5, schedule=COSINE)


def wrapped(rank):
    """In a file and back, in mid curve."""
    net = model()
    opt = zero(net)
    first = train(net, opt, range(SAVED))
    opt.consolidate_state_dict(to=0)
    file = io.BytesIO()
    if rank == 0:
        torch.save(opt.state_dict(), file)
    shared = [file.getvalue()]
    torch.distributed.broadcast_object_list(shared)
    twin = copy.deepcopy(net)
    resumed = zero(twin)
    resumed.load_state_dict(torch.load(io.BytesIO(shared[0]), weights_only=True))
    rest = [train(n, o, range(SAVED, STEPS)) and o.optim.last_lr()[0] for n, o in ((net, opt), (twin, resumed))]
    same = [torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True)]
    return first, rest, all(same)


def cases(rank):
    found = {"sharded": sharded(rank), "wrapped": wrapped(rank)}
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        found["lagging"] = wrapped(rank)
    return found


@pytest.fixture(scope="module")
def results():
    return run(cases, WORLD)


def test_every_rank_follows_curve_decay_and_the_mean_loss(results):
    spec, wsd = LossSpec(GreedyLR(patience=0, factor=0.5, smooth=False), [0.5]), GUIDED.base
    levels = [0.5, *(spec.observe(sum(losses) / WORLD)[0] for losses in LOSSES)]
    warm, fall = [0.0, 0.5, *[1.0] * 6], [*[1.0] * 4, *wsd.decay(4)[1:]]
    for rank in results:
        assert rank["sharded"] == [level * (w * f) for level, w, f in zip(levels, warm, fall, strict=True)]


@pytest.mark.parametrize("mirror", ["wrapped", "lagging"])
def test_zero_follows_the_curve_and_resumes_in_it(results, mirror):
    """On a GPU the LR that a group shows is a step old, which must not be taken for one that somebody wrote."""
    want = [0.5 * ratio for ratio in COSINE.curve()]
    for rank in results:
        shown, last, same = rank[mirror]
        assert same and last == [want[STEPS]] * 2
        if mirror == "wrapped":
            assert shown == want[: SAVED + 1]
