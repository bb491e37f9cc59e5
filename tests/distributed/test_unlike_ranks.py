"""Ranks that hold or see different things decide alike, and wait for each other."""

import math

import pytest
import torch
import torch.distributed as dist
from support.errors import error_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from greedylr_fused import FusedAdamW, GreedyLR

WORLD = 4
SCHEDULE = GreedyLR(patience=0, factor=0.5, smooth=False)
CLIPS = dict(lr=0.1, schedule=SCHEDULE, max_grad_norm=1.0)
#: A sum of n squares, halved by the root, in any order; all models here have fewer than 200 elements.
ROUNDING = 200 * torch.finfo(torch.float64).eps


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(*shape, seed=0):
    param = torch.nn.Parameter(values(*shape, seed=seed))
    param.grad = values(*shape, seed=seed + 1000)
    return param


def placed(param, mesh, *placements):
    """The DTensor parameter, with gradient, that a plain one becomes."""
    found = torch.nn.Parameter(distribute_tensor(param.detach().clone(), mesh, placements))
    found.grad = distribute_tensor(param.grad.clone(), mesh, placements)
    return found


def mixed(rank):
    """Sharded once and twice, in either dimension and unevenly, replicated, on the whole mesh and on a part of it, and
    plain parameters, in one optimizer: as clip_grad_norm_ and torch's AdamW on the whole.
    """
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    shapes = [(4, 6), (6, 4), (5, 3), (1, 7), (3,), (8, 2), (4, 4), (2, 2)]
    whole = [plain(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    both, data, tensor = mesh, mesh["data"], mesh["tensor"]
    layouts = [
        *((both, Shard(0), Shard(1)), (both, Shard(0), Shard(0)), (both, Replicate(), Shard(0))),
        *((both, Shard(0), Replicate()), (both, Replicate(), Replicate()), (tensor, Shard(0)), (data, Shard(1))),
    ]
    parts = [placed(param, *layout) for param, layout in zip(whole, layouts, strict=False)]
    parts.append(plain(*shapes[-1], seed=len(shapes) - 1))
    opt = FusedAdamW(parts, **CLIPS)
    torchs = torch.optim.AdamW(whole, lr=0.1)
    norm = clip_grad_norm_(whole, 1.0).item()
    opt.step(loss=1.0)
    torchs.step()
    found = [part.full_tensor() if isinstance(part, DTensor) else part for part in parts]
    worst = max((a - b).abs().max().item() for a, b in zip(found, whole, strict=True))
    opt.check_ranks_agree()
    assert opt.metrics().grad_norm == pytest.approx(norm, rel=ROUNDING, abs=0)
    assert worst < 10 * ROUNDING, "the first update has the size of the LR, 0.1"


def test_the_norm_of_mixed_placements_is_that_of_the_whole_model(ranks):
    ranks(mixed)


def nonfinite(rank):
    """One rank has an infinite gradient: in a shard, and in a replica that was not averaged."""
    mesh = init_device_mesh("cpu", (WORLD,))
    sharded, replica = placed(plain(8), mesh, Shard(0)), plain(3)
    opt = FusedAdamW([sharded, replica], **CLIPS)
    seen = []
    for bad in (None, sharded, replica, None):
        for param in (sharded, replica):
            param.grad = param.grad.clone()
        if bad is not None and rank == 2:
            before = bad.grad
            bad.grad = torch.full_like(before, math.inf)
        opt.step(loss=1.0)
        if bad is not None and rank == 2:
            bad.grad = before
        seen.append((opt.metrics().step, opt.metrics().skipped, opt.read_lr()[0]))
    assert [(step, skipped) for step, skipped, _ in seen] == [(1, 0), (1, 1), (1, 2), (2, 2)]
    assert seen[0][2] == seen[1][2] == seen[2][2] != seen[3][2], "a skipped step decides nothing"
    params = [sharded.full_tensor().tolist(), replica.tolist()]
    assert all(math.isfinite(value) for param in params for value in param)
    return seen, params


def test_a_nonfinite_gradient_on_one_rank_skips_the_step_on_all(ranks):
    first, *others = ranks(nonfinite)
    assert others == [first] * (WORLD - 1)


def found_inf(rank):
    """What GradScaler found on one rank, which the others cannot see."""
    for options in (CLIPS, dict(lr=0.1, schedule=SCHEDULE)):
        opt, seen = FusedAdamW([plain(3)], **options), []
        opt.grad_scale = torch.tensor(8.0)
        for step in range(3):
            opt.found_inf = torch.tensor(float(rank == 1 and step == 1))
            opt.step(loss=1.0)
            seen.append((opt.metrics().step, opt.metrics().skipped))
        opt.check_ranks_agree()
        assert seen == [(1, 0), (1, 1), (2, 1)]


def test_what_amp_finds_on_one_rank_skips_the_step_on_all(ranks):
    ranks(found_inf)


def without_gradients(rank):
    """The last rank has no gradient at all, first and later; a group of layers may be frozen on it."""
    opt = FusedAdamW([plain(3, seed=rank)], **CLIPS, partitions=WORLD)
    param = opt.param_groups[0]["params"][0]
    norms, grads = [], [values(3, seed=rank + 1000 * step) for step in range(3)]
    for step, grad in enumerate(grads):
        param.grad = None if rank == WORLD - 1 and step != 1 else grad
        opt.step(loss=1.0 + rank)
        norms.append(opt.metrics().grad_norm)
    wanted = []
    for step in range(3):
        ranks = range(WORLD if step == 1 else WORLD - 1)
        wanted.append(get_total_norm([values(3, seed=other + 1000 * step) for other in ranks]).item())
    assert norms == pytest.approx(wanted, rel=ROUNDING, abs=0)
    assert len(opt.state) == 1 and opt.metrics().loss == 2.5


def test_a_rank_without_gradients_takes_part(ranks):
    ranks(without_gradients)


def without_parameters(rank):
    """As ZeroRedundancyOptimizer constructs it on the ranks beyond the last parameter. A first step at LR 0 looks like
    that of distributed checkpointing to all ranks but the first, whose gradient is not zero.
    """
    norm = pytest.approx(values(3, seed=1000).norm().item(), rel=ROUNDING, abs=0)
    for options in (CLIPS, dict(lr=0.0, max_grad_norm=1.0)):
        params = [plain(3, seed=rank)] if rank < 2 else []
        if rank == 1:
            params[0].grad.zero_()
        opt = FusedAdamW([{"params": params}], **options, partitions=WORLD)
        for step in range(3):
            opt.step(loss=1.0) if opt.schedule else opt.step()
            assert (opt.metrics().step, opt.metrics().grad_norm) == (step + 1, norm)
        opt.check_ranks_agree()


def test_a_rank_without_parameters_takes_part(ranks):
    ranks(without_parameters)


def undeclared(rank):
    """Parameters are divided, some ranks got none, and nobody said so: an error on every rank."""
    opt = FusedAdamW([{"params": [plain(3, seed=rank)] if rank < 2 else []}], **CLIPS)
    error = error_of(lambda: opt.step(loss=1.0))
    assert (
        "expected replicas in the process group" in error
        and "on rank 1 that differ" in error
        and "partitions=" in error
    )


def test_divided_parameters_that_were_not_declared_are_refused_on_every_rank(ranks):
    ranks(undeclared)


def hybrid(rank):
    """FSDP1 under HYBRID_SHARD, and nobody said so: an error on every rank, if a norm is added up."""
    said = []
    for options in (CLIPS, dict(lr=0.1, schedule=SCHEDULE)):
        mesh = init_device_mesh("cpu", (2, 2))
        torch.manual_seed(0)
        strategy, device = ShardingStrategy.HYBRID_SHARD, torch.device("cpu")
        net = FullyShardedDataParallel(
            torch.nn.Linear(3, 3), sharding_strategy=strategy, device_mesh=mesh, device_id=device
        )
        opt = FusedAdamW(net.parameters(), **options)
        net(torch.ones(2, 3)).sum().backward()
        said.append(error_of(lambda opt=opt: opt.step(loss=1.0)))
    clipped, driven = said
    assert "on each of the 4 ranks" in clipped and "on the ranks 0 and 2; pass partitions=2" in clipped
    assert driven == "", "no norm is needed"


def test_copies_of_fsdp1_that_were_not_declared_are_refused_on_every_rank(ranks):
    ranks(hybrid)


def subgroups(rank):
    """Each pair of ranks has a model of its own: norm and skip of the other do not count."""
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    opt = FusedAdamW([plain(3, seed=rank)], **CLIPS, process_group=pair, partitions=2)
    if rank == 3:
        opt.param_groups[0]["params"][0].grad[0] = math.nan
    opt.step(loss=1.0)
    assert opt.metrics().skipped == rank // 2
    if rank < 2:
        norm = get_total_norm([values(3, seed=1000 + mate) for mate in range(2)]).item()
        assert opt.metrics().grad_norm == pytest.approx(norm, rel=ROUNDING, abs=0)


def test_a_process_group_decides_for_itself(ranks):
    ranks(subgroups)
