"""Which ranks decide together, what is refused, and how ranks that differ are found."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from support.errors import error_of
from support.ranks import run

from greedylr_fused import FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.telemetry import Recorder

SCHEDULE = GreedyLR(patience=0, factor=0.5, smooth=False)


def params(*shapes, seed=0):
    torch.manual_seed(seed)
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes or ((4,),)]
    for param in found:
        param.grad = torch.ones_like(param)
    return found


def given_group(rank):
    """Pairs of ranks decide together, and each with its own parameters."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    opt = FusedAdamW(params(seed=rank // 2), lr=0.1, schedule=SCHEDULE, process_group=pairs[rank // 2])
    losses = []
    for step in range(4):
        opt.step(loss=float(rank) + step)
        losses.append(opt.metrics().loss)
    opt.check_ranks_agree()
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for twin in twins:
        twin.param_groups[0]["params"][0].grad = torch.ones(4)
        twin.step(loss=float(rank))
    alone = FusedAdamW(params(seed=rank), lr=0.1, schedule=SCHEDULE, process_group=dist.new_subgroups(1)[0])
    alone.step(loss=float(rank))
    mean = 2 * (rank // 2) + 0.5
    assert losses == [mean + step for step in range(4)]
    assert [twin.metrics().loss for twin in twins] == [mean] * 2, "a copy keeps the group"
    assert alone.metrics().loss == rank
    outside = error_of(lambda: FusedAdamW(params(), lr=0.1, process_group=pairs[1 - rank // 2]))
    assert "process_group: expected None" in outside and ", got " in outside and "new_group()" in outside


def test_losses_are_averaged_over_the_given_group():
    run(given_group, 4)


def differing(rank):
    opt = FusedAdamW(params(), lr=0.1, schedule=SCHEDULE)
    opt.check_ranks_agree()  # before the first step, too
    opt.step(loss=2.0)
    opt.check_ranks_agree()
    if rank == 1:
        opt._control.slot("good").fill_(7.0)
    counter = error_of(opt.check_ranks_agree)
    opt._control.slot("good").fill_(0.0)
    opt.set_lr(0.05 + 0.01 * (rank == 2))
    lr = error_of(opt.check_ranks_agree)
    opt.set_lr(0.05)
    opt.check_ranks_agree()
    own = FusedAdamW(params(), lr=0.1, schedule=GreedyLR(smooth=True, window_size=2 + rank // 2))
    window = error_of(own.check_ranks_agree)
    assert "good differs: 0.0 on ranks 0, 2, 7.0 on rank 1" in counter
    assert "lr of group 0 differs: 0.05 on ranks 0, 1, 0.06" in lr and "on rank 2" in lr
    assert "window_size differs: 2.0 on ranks 0, 1, 3.0 on rank 2" in window
    return counter, lr, window


def test_a_slot_that_differs_is_named():
    first, *others = run(differing, 3)
    assert others == [first] * 2, "every rank raises the same"


def other_parameters(rank):
    options = dict(lr=0.1, schedule=SCHEDULE, max_grad_norm=1.0)
    by_shape = FusedAdamW(params((2 + rank,)), **options)
    by_value = FusedAdamW(params(seed=rank), **options)
    told = FusedAdamW(params(seed=rank), **options, partitions=2)
    told.step(loss=1.0)
    many = FusedAdamW(params(), **options, partitions=3)
    for opt in (by_shape, by_value):
        error = error_of(lambda opt=opt: opt.step(loss=1.0))
        assert (
            "expected replicas in the process group" in error
            and "on rank 1 that differ" in error
            and "partitions=" in error
        )
    error = error_of(lambda: many.step(loss=1.0))
    assert "divides the 2 ranks of the group, got 3 parts" in error
    assert told.metrics().grad_norm == 8**0.5


def test_parameters_that_are_divided_must_be_said_to_be():
    run(other_parameters, 2)


def initialised_later(rank):
    """An optimizer that stepped alone notices the ranks that it has since, and that they are gone again."""
    dist.destroy_process_group()
    opt = FusedAdamW(params(), lr=0.1, schedule=SCHEDULE)
    opt.step(loss=float(rank))
    seen = [opt.metrics().loss]
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        opt.step(loss=float(rank))
        seen.append(opt.metrics().loss)
        if len(seen) < 3:
            dist.destroy_process_group()
    return seen, opt._engine.ranks.size


def test_ranks_that_come_and_go_are_noticed():
    assert run(initialised_later, 2) == [([0.0] * 3, 1), ([1.0] * 3, 1)]


READING = [dict(max_grad_norm=1.0), dict(skip_nonfinite=True), dict(skip_spikes=SkipSpikes()), dict(recorded=True)]


@pytest.mark.parametrize("options", READING, ids=str)
def test_stepping_in_a_hook_of_backward_is_refused_where_all_gradients_are_needed(options):
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for weight in weights:
        opt = FusedAdamW([weight], lr=0.1, **{name: value for name, value in options.items() if name != "recorded"})
        if "recorded" in options:
            Recorder(opt, lambda metrics, step: None, grad_norms=True)
        weight.register_post_accumulate_grad_hook(lambda _, opt=opt: opt.step(loss=1.0))
    with pytest.raises(RuntimeError, match=r"from a hook within backward\(\).*turn them off"):
        (weights[0] * weights[1]).sum().backward()
    assert all((weight == 1).all() for weight in weights)


def test_stepping_in_a_hook_of_backward():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for weight in weights:
        opt = FusedAdamW([weight], lr=0.1)
        weight.register_post_accumulate_grad_hook(lambda _, opt=opt: opt.step())
    (weights[0] * weights[1]).sum().backward()
    assert all((weight < 1).all() for weight in weights)


@pytest.mark.parametrize("bad", ["world", [0, 1], 0])
def test_what_is_no_process_group_is_refused(bad):
    with pytest.raises(TypeError, match="process_group: expected None .*or a group.*, got "):
        FusedAdamW(params(), process_group=bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_partitions_are_counted(bad):
    with pytest.raises(ValueError, match="partitions: expected None or an integer >= 1, .*got "):
        FusedAdamW(params(), partitions=bad)
