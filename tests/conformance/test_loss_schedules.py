"""What GreedyLR has beyond transformers' class, and ReduceOnPlateau, on every backend against their specifications."""

import math
import random

import pytest
import torch
from support.oracle import Case, assert_same_trace, backend_trace, lr_trace, random_case, spec_trace, with_nonfinite

from greedylr_fused import GreedyLR, ReduceOnPlateau
from greedylr_fused.schedules import LossSpec


def beyond(rng, n):
    """A case that forgets, compares with the previous observation, or holds its decisions, or any of these together."""
    case = random_case(rng, n)
    added = {"forget_every": rng.choice((0, 1, 2, 5, 20)), "compare": rng.choice(("best", "previous"))}
    added["hold"] = rng.choice((None, 0, 1, 7))
    return Case(GreedyLR(**{**vars(case.config), **added}), case.lrs, with_nonfinite(rng, case.losses))


def plateau(rng, n):
    case = random_case(rng, n)
    same = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps", "smooth", "window_size")
    options = {name: getattr(case.config, name) for name in same}
    low = [lr * rng.choice((0.0, 0.01, 0.5, 1.0)) for lr in case.lrs]
    return Case(ReduceOnPlateau(**options, min_lr=low), case.lrs, case.losses)


def torch_trace(case):
    """torch.optim.lr_scheduler.ReduceLROnPlateau on the same metrics; it knows no window."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in case.lrs]
    opt, config = torch.optim.SGD(groups), case.config
    names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    options = {name: getattr(config, name) for name in names}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, min_lr=list(config.min_lr), **options)
    found = []
    for loss in case.losses:
        scheduler.step(loss)
        state = (scheduler.best, scheduler.num_bad_epochs, scheduler.cooldown_counter)
        found.append([*(group["lr"] for group in opt.param_groups), *map(float, state)])
    return found


def plateau_trace(case):
    spec = LossSpec(case.config, case.lrs)
    return [[*spec.observe(loss), spec.best, float(spec.bad), float(spec.cooldown_left)] for loss in case.losses]


PLATEAU = ("best", "bad", "cooldown_left")


def test_forgetting_and_comparing_with_the_previous(backend, device, budget):
    rng = random.Random(31)
    steps = budget.control_steps[backend] // 10
    while steps > 0:
        case = beyond(rng, n := min(steps, 80))
        steps -= n
        assert_same_trace(backend_trace(backend, device, case, told=True), spec_trace(case, told=True), case)


def test_plateau_is_torchs(backend, device, budget):
    rng = random.Random(32)
    steps = budget.control_steps[backend] // 10
    while steps > 0:
        case = plateau(rng, n := min(steps, 80))
        steps -= n
        got = lr_trace(backend, device, case, PLATEAU)
        assert_same_trace(got, plateau_trace(case), case)
        if not case.config.smooth:
            assert_same_trace(got, torch_trace(case), case)


def test_the_plateau_cases_reach_every_branch():
    rng, reached = random.Random(32), dict.fromkeys(("cut", "cooling", "better", "at floor", "better while cooling"), 0)
    for _ in range(100):
        case = plateau(rng, 80)
        spec = LossSpec(case.config, case.lrs)
        for loss in case.losses:
            lr, best, cooling = list(spec.lr), spec.best, spec.cooldown_left > 0
            after = spec.observe(loss)
            reached["cut"] += after < lr
            reached["cooling"] += cooling
            reached["better"] += spec.best != best
            reached["better while cooling"] += cooling and spec.best != best
            reached["at floor"] += all(a <= b for a, b in zip(spec.lr, spec.min_lr, strict=True))
    assert all(count > 50 for count in reached.values()), reached


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_loss_is_a_bad_observation_of_a_plateau(backend, device, bad):
    """In torch -inf becomes the best, which nothing is better than."""
    case = Case(ReduceOnPlateau(patience=1, factor=0.5), [1.0], [2.0, bad, 1.0, bad, bad, 0.5])
    assert_same_trace(lr_trace(backend, device, case, PLATEAU), plateau_trace(case), case)
    assert [row[0] for row in plateau_trace(case)] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_algorithm_1_of_the_paper():
    """A loss below the one before raises, any other cuts, ties included; no bounds but those given."""
    config = GreedyLR(
        compare="previous", patience=0, threshold=0, eps=0, factor=0.5, min_lr=0.0, max_lr=1e9, smooth=False
    )
    rng = random.Random(5)
    losses = [float(rng.randrange(4)) for _ in range(200)]
    spec, lr, previous = LossSpec(config, [1.0]), 1.0, math.inf
    for loss in losses:
        lr = lr / 0.5 if loss < previous else lr * 0.5
        previous = loss
        assert spec.observe(loss) == [lr]


def test_forgetting_re_arms_raises_and_leaves_lr_and_window():
    """The best that a spike hides is gone after so many observations, not before, and nothing else changes."""
    config = GreedyLR(patience=0, factor=0.5, forget_every=3, smooth=True, window_size=2, min_lr=1e-3)
    spec = LossSpec(config, [1.0])
    lrs = [spec.observe(loss)[0] for loss in (1.0, 5.0, 5.0, 9.0, 9.5, 9.5, 20.0)]
    assert lrs == [2.0, 1.0, 0.5, 1.0, 0.5, 0.25, 0.5]
    assert list(spec.window) == [9.5, 20.0] and spec.resets_left == config.reset_start


def test_the_previous_is_remembered_while_waiting():
    config = GreedyLR(compare="previous", patience=0, factor=0.5, warmup=2, threshold=0, smooth=False)
    spec = LossSpec(config, [1.0])
    assert [spec.observe(loss)[0] for loss in (5.0, 4.0, 1.0, 2.0, 1.5)] == [2.0, 2.0, 2.0, 1.0, 2.0]
