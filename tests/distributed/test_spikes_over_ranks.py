"""SkipSpikes over two ranks: one decision, from the losses and gradients of both, whatever is sharded."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from greedylr_fused import FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.schedules import SpikeSpec

WORLD = 2
SMALL = SkipSpikes(rolling_interval_length=8, sigma_factor=3.0)
SCHEDULES = {"none": None, "loss": GreedyLR(patience=0, factor=0.7, smooth=False)}
GUARDS = {"alone": {}, "clip": dict(max_grad_norm=0.5), "amp": {}}
SHAPES = {(5, 3): Shard(0), (4, 6): Shard(1), (1, 2): Shard(0), (7,): Replicate()}
#: Step by step, the loss of each rank, and the size of the gradients. A spike of one rank alone is one of the mean; two
#: that take each other away are none; and where one rank has seen a spike it must not be alone to skip.
STEPS = [(2.0, 2.2, 1.0), (2.1, 2.0, 1.1), (1.9, 2.1, 0.9), (2.0, 2.0, 1.0), (2.1, 1.9, 1.05), (2.0, 2.2, 1.0)]
STEPS += [(9.0, 2.0, 1.0), (2.0, 2.1, 1.0), (-5.0, 9.1, 1.0), (2.0, 2.0, 9.0), (2.0, 2.1, 1.0), (2.1, 2.0, 1.1)]
STEPS += [(2.0, 2.0, 1.0), (2.0, 2.1, 1.0), (1.9, 2.0, 1.0), (2.0, 2.1, 0.9), (2.2, 2.0, 1.0), (2.0, 60.0, 1.0)]


def gradients(number, size):
    """Small whole numbers, whose sums of squares are exact in any order."""
    source = torch.Generator().manual_seed(number)
    return [size * torch.randint(1, 4, shape, generator=source).float() for shape in SHAPES]


def train(params, place, rank, guard, **options):
    """What each step did: whether it changed anything, the counts, LR and norm."""
    opt, seen = FusedAdamW(params, lr=0.01, skip_spikes=SMALL, **GUARDS[guard], **options), []
    for number, (first, second, size) in enumerate(STEPS):
        for param, grad in zip(params, place(gradients(number, 4.0 * size if guard == "amp" else size)), strict=True):
            param.grad = grad
        if guard == "amp":
            opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        before = [local(param).clone() for param in params]
        opt.step(loss=torch.tensor((first, second)[rank] if rank is not None else (first + second) / 2))
        changed = not all(map(torch.equal, before, map(local, params)))
        found = opt.metrics()
        seen.append([changed, found.step, found.skipped, found.skipped_spikes, opt.read_lr(), found.grad_norm])
        opt.check_ranks_agree()
    return seen


def local(param):
    found = param.to_local() if hasattr(param, "to_local") else param
    return found.detach()


def over_ranks(rank, kind, guard, name):
    mesh = init_device_mesh("cpu", (WORLD,))

    def placed(tensors):
        if kind == "replicas":
            return tensors
        placements = SHAPES.values()
        return [distribute_tensor(tensor, mesh, [own]) for tensor, own in zip(tensors, placements, strict=True)]

    params = [torch.nn.Parameter(tensor) for tensor in placed([torch.ones(shape) for shape in SHAPES])]
    return train(params, placed, rank, guard, schedule=SCHEDULES[name])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("kind", ["replicas", "sharded"])
def test_every_rank_skips_what_one_process_would(ranks, kind, guard, name):
    first, second = ranks(over_ranks, kind, guard, name)
    assert first == second
    one = train(
        [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES], list, None, guard, schedule=SCHEDULES[name]
    )
    spec = SpikeSpec(SMALL)
    for number, ((*losses, _), mine, alone) in enumerate(zip(STEPS, first, one, strict=True)):
        spike = spec.judge(sum(map(lambda x: float(torch.tensor(x)), losses)) / 2, mine[-1])
        assert mine[0] is not spike, f"step {number}"
        assert mine[:4] == alone[:4] and mine[4] == pytest.approx(alone[4]) and mine[5] == pytest.approx(alone[5])
    assert [number for number, found in enumerate(first) if not found[0]] == [6, 9, 17]


def fsdp(rank):
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    fully_shard(net)
    opt, source, seen = (
        FusedAdamW(net.parameters(), lr=1e-3, skip_spikes=SMALL),
        torch.Generator().manual_seed(rank),
        [],
    )
    for number in range(16):
        x = torch.randn(64, 4, generator=source) * (40.0 if (number, rank) == (12, 1) else 1.0)
        opt.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        opt.step(loss=loss)
        seen.append(opt.metrics().skipped_spikes)
    opt.check_ranks_agree()
    return seen


def test_a_bad_batch_of_one_rank_skips_under_fsdp(ranks):
    first, second = ranks(fsdp)
    assert first == second and first[11:13] == [0, 1]


def one_rank_differs(rank):
    opt = FusedAdamW([torch.nn.Parameter(torch.ones(3))], skip_spikes=SMALL)
    for loss in (1.0, 2.0):
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step(loss=loss)
    opt.check_ranks_agree()
    if rank:
        opt._control.vector[-1] = 5.0
    with pytest.raises(RuntimeError, match=r"norms of spikes\[7\] differs: 0.0 on rank 0, 5.0 on rank 1"):
        opt.check_ranks_agree()


def test_the_rings_are_compared(ranks):
    ranks(one_rank_differs)
