"""GreedyLR on the device: bit-equal to transformers, and the deliberate differences."""

import math
import random

import pytest
import torch
from support.golden import TRACES
from support.oracle import (
    Case,
    assert_same_trace,
    backend_trace,
    random_case,
    random_cases,
    spec_trace,
    upstream_trace,
    with_nonfinite,
)
from support.tensors import assert_same, latest, parameter, snapshot
from transformers.optimization import GreedyLR as Upstream

from greedylr_fused import FusedAdamW, GreedyLR


def build(backend, device, config, lr, **options):
    param = parameter(torch.randn(5, device=device), torch.randn(5, device=device))
    return FusedAdamW([param], lr=lr, schedule=config, backend=backend, **options)


def slots(opt, names):
    return {name: float(opt._control.slot(name)) for name in names}


@pytest.mark.parametrize("trace", TRACES)
def test_golden_trace(backend, device, trace):
    trace = TRACES[trace]
    opt = build(backend, device, trace.config, trace.lr)
    for i, row in enumerate(trace.rows):
        opt.step(loss=torch.tensor(row.loss, device=device, dtype=torch.float64))
        assert opt.read_lr() == [row.lr], f"row {i}: {row.reason}"
        assert slots(opt, row.expected) == row.expected, f"row {i}: {row.reason}"


def test_step_updates_with_the_lr_before_the_loss_decides(backend, device):
    """Step t uses lr_t; loss_t decides lr_{t+1}."""
    param = parameter(torch.zeros(1, device=device), torch.ones(1, device=device))
    opt = FusedAdamW(
        [param], lr=0.5, eps=0, weight_decay=0, schedule=GreedyLR(patience=0, factor=0.5, smooth=False), backend=backend
    )
    for loss, want in ((3.0, -0.5), (4.0, -1.5), (5.0, -2.0), (6.0, -2.25)):
        opt.step(loss=loss)
        assert param.item() == pytest.approx(want, abs=1e-5)


def test_random_traces_against_transformers(backend, device, budget):
    for case in random_cases(seed=11, steps=budget.control_steps[backend]):
        assert_same_trace(backend_trace(backend, device, case), upstream_trace(case), case)


def test_nonfinite_losses_against_the_specification(backend, device, budget):
    rng = random.Random(12)
    for case in random_cases(seed=13, steps=budget.control_steps[backend] // 10):
        case = Case(case.config, case.lrs, with_nonfinite(rng, case.losses))
        assert_same_trace(backend_trace(backend, device, case, told=True), spec_trace(case, told=True), case)


def test_step_equals_bare_control(backend, device, budget):
    """Through `opt.step` with 1 to 3 groups, losses of every dtype's precision: what the bare control step gives."""
    rng = random.Random(14)
    for _ in range(budget.rounds):
        case = random_case(rng, 30)
        groups = [
            {"params": [parameter(torch.zeros(3, device=device), torch.zeros(3, device=device))], "lr": lr}
            for lr in case.lrs
        ]
        opt = FusedAdamW(groups, schedule=case.config, backend=backend)
        for loss, want in zip(case.losses, upstream_trace(case), strict=True):
            opt.step(loss=torch.tensor(loss, dtype=torch.float64, device=device))
            assert opt.read_lr() == want[: len(groups)]
            assert latest(opt).lr == tuple(want[: len(groups)])
            assert latest(opt).best == want[len(groups)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("smooth", [False, True])
def test_difference_1_a_nonfinite_loss_is_a_bad_observation(backend, device, bad, mode, smooth):
    """It enters neither window nor best, whatever its sign; transformers' window is NaN for good after one."""
    config = GreedyLR(mode=mode, patience=0, factor=0.5, smooth=smooth, window_size=2)
    opt = build(backend, device, config, 1.0)
    losses = (3.0, 2.0) if mode == "min" else (2.0, 3.0)
    for loss in losses:
        opt.step(loss=loss)
    before = slots(opt, ("best", "window_sum", "window_count", "window_head", "smoothed"))
    assert opt.read_lr() == [4.0]
    for want in (2.0, 1.0):
        opt.step(loss=bad)
        assert opt.read_lr() == [want]  # patience 0: one bad observation cuts
        assert slots(opt, before) == before
        assert not math.isfinite(latest(opt).loss)
    opt.step(loss=losses[0] * 0.01 if mode == "min" else losses[1] * 100)
    assert opt.read_lr() == [2.0]  # and the next better one raises

    upstream = Upstream(torch.optim.SGD([parameter(torch.zeros(1))], lr=1.0), patience=0, factor=0.5, smooth=True)
    for loss in (3.0, math.nan, 1.0):
        upstream.step(loss)
    assert math.isnan(upstream._streaming_avg.sum)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_loss_at_every_position(backend, device, bad):
    losses = [4.0, 3.0, 3.5, 2.0, 5.0, 5.0, 1.0, 6.0]
    config = GreedyLR(patience=1, factor=0.5, smooth=True, window_size=3, warmup=1, cooldown=1, reset_start=1)
    for at in range(len(losses)):
        for run in (1, 3):
            case = Case(config, [0.1, 0.2], losses[:at] + [bad] * run + losses[at + run :])
            assert_same_trace(backend_trace(backend, device, case, told=True), spec_trace(case, told=True), case)


def test_difference_2_a_skipped_step_skips_control(backend, device):
    """Non-finite gradients: parameters, moments, step count, LR and the loss's decision all wait."""
    opt = build(backend, device, GreedyLR(patience=0, factor=0.5, smooth=False), 1.0, skip_nonfinite=True)
    opt.step(loss=3.0)
    state = snapshot(opt, control=False)
    before = slots(opt, ("step", "best", "good", "bad", "loss"))
    param = opt.param_groups[0]["params"][0]
    grad, param.grad = param.grad, torch.full_like(param, math.nan)
    opt.step(loss=1.0)
    assert_same(snapshot(opt, control=False), state)
    assert slots(opt, before) == before and opt.read_lr() == [2.0]
    assert latest(opt).skipped == 1
    param.grad = grad
    opt.step(loss=2.5)  # the loss of the skipped step is forgotten, not added
    assert latest(opt).loss == 2.5 and opt.read_lr() == [4.0]


def test_difference_3_bounds_are_ratios_of_the_starting_lr(backend, device):
    """Upstream's floor of 1e-3 makes cuts impossible at 3e-4; ours is a tenth of the start, our ceiling tenfold."""
    opt = build(backend, device, GreedyLR(patience=0, factor=0.5, smooth=False), 3e-4)
    for _ in range(6):
        opt.step(loss=1.0)
    assert opt.read_lr() == [0.1 * 3e-4]
    for i in range(10):
        opt.step(loss=-float(i))
    assert opt.read_lr() == [10.0 * 3e-4]
    upstream = Upstream(torch.optim.SGD([parameter(torch.zeros(1))], lr=3e-4), patience=0, factor=0.5)
    for loss in (1.0, 1.0, 1.0):
        upstream.step(loss)
    assert upstream.get_last_lr() == [6e-4]


def test_difference_4_bad_configurations_are_refused(backend, device):
    """Upstream takes a factor of 0 and a floor above the ceiling, and fails, or does nothing, later."""
    for options in (
        {"factor": 0.0},
        {"factor": -1.0},
        {"min_lr": 2.0, "max_lr": 1.0},
        {"min_lr": 1.5},
        {"window_size": 0},
    ):
        with pytest.raises(ValueError, match="GreedyLR"):
            build(backend, device, GreedyLR(**options), 1.0)
        Upstream(torch.optim.SGD([parameter(torch.zeros(1))], lr=1.0), **options)


def test_a_weighted_mean_is_observed(backend, device):
    opt = build(backend, device, GreedyLR(smooth=False), 1.0)
    opt.observe(torch.tensor(2.0, device=device), weight=3)
    opt.observe(4.0, weight=torch.tensor(1.0, device=device))
    opt.step()
    assert latest(opt).loss == 2.5
    opt.observe(8.0, weight=0.0)  # a micro-batch without tokens
    opt.observe(1.0, weight=2.0)
    opt.step()
    assert latest(opt).loss == 1.0


def test_no_loss_is_no_observation(backend, device):
    opt = build(backend, device, None, 1.0)
    opt.step(loss=3.0)
    opt.step()
    metrics = latest(opt)
    assert (metrics.step, metrics.loss, metrics.smoothed_loss) == (2, 3.0, 3.0)
    opt.step(loss=math.inf)
    assert latest(opt).loss == math.inf and opt.read_lr() == [1.0]


def test_observations_of_zero_weight_are_none(backend, device):
    opt = build(backend, device, GreedyLR(patience=0, factor=0.5, smooth=False), 1.0)
    opt.step(loss=3.0)
    opt.observe(1.0, weight=0.0)
    opt.step()
    assert opt.read_lr() == [2.0] and latest(opt).step == 2 and latest(opt).loss == 3.0


def test_no_fused_multiply_add_in_control(backend, device):
    """best * (1 - threshold) and lr * factor, each rounded once before it is compared or subtracted."""
    cases = []
    for mode, sign in (("min", -1.0), ("max", 1.0)):
        config = GreedyLR(mode=mode, patience=0, factor=0.7, threshold=0.1, threshold_mode="rel", eps=0.0, smooth=False)
        best = 1.1
        edge = best * (1.0 + sign * 0.1)
        for loss in (math.nextafter(edge, -math.inf), edge, math.nextafter(edge, math.inf)):
            cases.append(Case(config, [0.3], [best, loss]))
    for case in cases:
        assert_same_trace(backend_trace(backend, device, case), upstream_trace(case), case)
