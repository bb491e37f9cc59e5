"""Step schedules on the device, alone and under the loss: the LR of every step has the bits of the formula."""

import dataclasses
import math
import random

import pytest
import torch
from support.oracle import Case, assert_same_trace, lr_trace, random_case, spec_trace
from support.tensors import latest, parameter

from greedylr_fused import (
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    FusedAdamW,
    GreedyLR,
    Linear,
    OneCycle,
    ReduceOnPlateau,
    Table,
)

SCHEDULES = [
    Constant(),
    Constant(warmup_steps=3),
    Cosine(9, warmup_steps=2, min_lr_ratio=0.1),
    CosineRestarts(8, num_cycles=2),
    OneCycle(10),
    Table([0.5, 2.0, 0.0, 1.25]),
    WSD(10, decay_steps=4, warmup_steps=2, decay_type="1-sqrt"),
    WSD(warmup_steps=4, min_lr_ratio=0.2),
]


def build(backend, device, schedule, lrs=(0.3, 1e-4), **options):
    groups = [
        {"params": [parameter(torch.zeros(2, device=device), torch.ones(2, device=device))], "lr": lr} for lr in lrs
    ]
    return FusedAdamW(groups, schedule=schedule, backend=backend, **options)


def ratios(schedule, steps):
    curve = schedule.curve()
    return [curve[min(step, len(curve) - 1)] for step in range(steps)]


def trace(opt, losses):
    """The exact LRs before the first and after every step."""
    found = [opt.read_lr()]
    for loss in losses:
        opt.step() if loss is None else opt.step(loss=loss)
        found.append(opt.read_lr())
    return found


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_lr_of_every_step_is_the_peak_times_the_curve(backend, device, schedule):
    opt = build(backend, device, schedule)
    assert trace(opt, [None] * 14) == [[lr * ratio for lr in (0.3, 1e-4)] for ratio in ratios(schedule, 15)]
    assert list(latest(opt).lr) == opt.read_lr() == [group["lr"] for group in opt.param_groups]


def test_the_update_uses_the_lr_of_its_step(backend, device):
    opt = build(backend, device, Table([0.0, 1.0, 0.25]), lrs=[1.0], weight_decay=0.0, eps=0.0)
    values = []
    for _ in range(4):
        opt.step()
        values.append(opt.param_groups[0]["params"][0][0].item())
    assert values == pytest.approx([0.0, -1.0, -1.25, -1.5], abs=1e-5)  # of a constant gradient Adam makes steps of LR


def test_a_loss_is_recorded_and_decides_nothing(backend, device):
    schedule = Cosine(6)
    opt = build(backend, device, schedule)
    assert trace(opt, [3.0, None, math.nan, 2.0]) == [
        [lr * ratio for lr in (0.3, 1e-4)] for ratio in ratios(schedule, 5)
    ]
    assert (latest(opt).loss, latest(opt).step) == (2.0, 4)


def test_skipped_steps_do_not_count(backend, device):
    """Neither for the curve nor for a late decay."""
    opt = build(backend, device, WSD(warmup_steps=4), lrs=[1.0], skip_nonfinite=True)
    grad = opt.param_groups[0]["params"][0].grad
    opt.step()
    grad.fill_(math.nan)
    for _ in range(3):
        opt.step()
    assert opt.read_lr() == [0.25] and latest(opt).skipped == 3
    grad.fill_(1.0)
    assert trace(opt, [None] * 4)[1:] == [[0.5], [0.75], [1.0], [1.0]]
    opt.start_decay(2)
    grad.fill_(math.nan)
    opt.step()
    assert opt.read_lr() == [1.0]
    grad.fill_(1.0)
    assert trace(opt, [None] * 3)[1:] == [[0.5], [0.0], [0.0]]


@pytest.mark.parametrize("base", [Cosine(20, warmup_steps=3), Table([0.5, 1.0, 0.1]), WSD(25, decay_steps=9)])
def test_the_loss_moves_what_the_base_multiplies(backend, device, base, budget):
    """The level is GreedyLR's own trace without a base, once its warm-up is over; also through resets, windows and
    cooldowns.
    """
    rng = random.Random(21)
    curve = ratios(base, 31)[1:]
    for _ in range(4 * budget.rounds):
        case = random_case(rng, 30)
        held = dataclasses.replace(case.config, hold=base.curve().index(max(base.curve())))
        levels = [row[: len(case.lrs)] for row in spec_trace(dataclasses.replace(case, config=held))]
        based = Case(dataclasses.replace(case.config, base=base), case.lrs, case.losses)
        want = [[level * share for level in row] for row, share in zip(levels, curve, strict=True)]
        assert_same_trace(lr_trace(backend, device, based, ()), want, based)


#: What six observations of ever larger losses do on a warm-up of three steps: the observation of step 3, the first at
#: the peak, is the first that may cut.
HELD = [
    (None, [1.0, 1.0, 1.0, 0.5, 0.25, 0.125]),
    (0, [2.0, 1.0, 0.5, 0.25, 0.125, 0.125]),
    (5, [1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
]


@pytest.mark.parametrize(("hold", "levels"), HELD, ids=str)
def test_the_loss_decides_nothing_before_the_warm_up_is_over(backend, device, hold, levels):
    """Nor is its best then that of an LR that was still low; a `hold` of the user's own comes first."""
    shared = dict(patience=0, factor=0.5, min_lr_ratio=0.125, hold=hold, compare="previous")
    base = WSD(warmup_steps=3)
    opt = build(backend, device, GreedyLR(**shared, base=base), lrs=[1.0])
    found = trace(opt, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[1:]
    assert found == [[level * ratio] for level, ratio in zip(levels, ratios(base, 7)[1:], strict=True)]


def test_the_window_fills_while_decisions_wait(backend, device):
    opt = build(backend, device, GreedyLR(patience=0, window_size=4, hold=3), lrs=[1.0])
    trace(opt, [8.0, 4.0, 3.0])
    at = latest(opt)
    assert (at.smoothed_loss, at.best, opt.read_lr()) == (5.0, math.inf, [1.0])
    trace(opt, [1.0])
    assert (latest(opt).smoothed_loss, latest(opt).best) == (4.0, 4.0) and opt.read_lr() == [1.0 / 0.95]


def test_a_plateau_remembers_the_best_of_its_warm_up(backend, device):
    base = Constant(warmup_steps=2)
    opt = build(backend, device, ReduceOnPlateau(patience=0, factor=0.5, base=base), lrs=[1.0])
    assert trace(opt, [1.0, 2.0, 2.0, 0.5])[1:] == [[0.5], [1.0], [0.5], [0.5]]


def test_a_plateau_with_a_base(backend, device):
    opt = build(backend, device, ReduceOnPlateau(patience=0, factor=0.5, base=Linear(5)), lrs=[1.0])
    assert trace(opt, [1.0, 1.0, 1.0]) == [[1.0], [0.8], [0.5 * 0.6], [0.25 * 0.4]]


def test_a_late_decay(backend, device):
    """From the step at which it is asked for, over the warm-up too, and to the same bits as the fixed form."""
    schedule = WSD(warmup_steps=2, min_lr_ratio=0.1, decay_type="1-sqrt")
    opt = build(backend, device, schedule, lrs=[0.7])
    fixed = WSD(11, warmup_steps=2, decay_steps=4, min_lr_ratio=0.1, decay_type="1-sqrt")
    found = trace(opt, [None] * 7)
    opt.start_decay(4)
    assert opt.read_lr() == found[-1]
    found += trace(opt, [None] * 6)[1:]
    assert found == [[0.7 * ratio] for ratio in ratios(fixed, 14)]

    early = build(backend, device, schedule, lrs=[1.0])
    early.step()
    early.start_decay(2)
    warm, fall = schedule.curve(), schedule.decay(2)
    assert trace(early, [None] * 3) == [[warm[1]], [warm[2] * fall[1]], [warm[2] * fall[2]], [warm[2] * fall[2]]]


def test_greedy_with_a_late_decay_anneals(backend, device):
    opt = build(backend, device, GreedyLR(patience=0, factor=0.5, base=WSD(), smooth=False), lrs=[1.0])
    trace(opt, [4.0, 3.0])
    opt.start_decay(4)
    fall = WSD().decay(4)
    assert trace(opt, [2.0, 5.0, 5.0, 5.0]) == [[4.0], [8.0 * fall[1]], [4.0 * fall[2]], [2.0 * fall[3]], [0.0]]


def test_no_decay_to_start(backend, device):
    for schedule in (None, GreedyLR(smooth=False), Cosine(5), WSD(10, decay_steps=2)):
        with pytest.raises(
            RuntimeError, match=r"start_decay\(\): expected .*, got .*WSD\(warmup_steps=.*without total_steps"
        ):
            build(backend, device, schedule).start_decay(5)
    opt = build(backend, device, WSD())
    for steps, error in ((0, ValueError), (2**20 + 1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"start_decay\(\): expected .*, got "):
            opt.start_decay(steps)
    opt.start_decay(2)
    with pytest.raises(RuntimeError, match=r"second call.*decay of 2 steps"):
        opt.start_decay(2)


@pytest.mark.parametrize("writes", ["set_lr", "group", "tensor"])
def test_a_written_lr_is_that_of_the_next_step_and_the_schedule_goes_on_from_it(backend, device, writes):
    opt = build(backend, device, Linear(8), lrs=[1.0])
    trace(opt, [None] * 4)
    if writes == "set_lr":
        opt.set_lr(0.25)
    else:
        opt.param_groups[0]["lr"] = 0.25 if writes == "group" else torch.tensor(0.25, device=device)
    assert opt.read_lr() == [0.25]
    assert trace(opt, [None] * 4)[1:] == [[0.5 * ratio] for ratio in (0.375, 0.25, 0.125, 0.0)]
    opt.set_lr(0.125)  # where the curve is 0, for one step
    assert opt.read_lr() == [0.125]
    assert trace(opt, [None])[1:] == [[0.0]]


def test_a_written_lr_stays_within_the_bounds_of_the_level(backend, device):
    opt = build(backend, device, GreedyLR(base=Linear(4), min_lr_ratio=0.5, max_lr_ratio=2.0, smooth=False), lrs=[1.0])
    opt.step(loss=1.0)
    opt.set_lr(2.0 * 0.75)
    assert opt.read_lr() == [2.0 * 0.75]
    for lr in (100.0, 1e-9):
        opt.param_groups[0]["lr"] = torch.tensor(lr, device=device)  # the host cannot look at it
        assert opt.read_lr() == [2.0 * 0.75 if lr > 1 else 0.5 * 0.75]
        with pytest.raises(
            ValueError, match=r"expected a peak of 0.5 to 2, got .* curve is at 0.75, so that its peak "
        ):
            opt.set_lr(lr)
    with pytest.raises(ValueError, match="expected a finite number >= 0, got"):
        opt.set_lr(-1.0)


def test_an_lr_that_would_make_the_peak_a_mistake_is_refused(backend, device):
    """Early in a warm-up, and late in a decay, a usual LR is far above the curve."""
    opt = build(backend, device, Linear(1000, warmup_steps=500), lrs=[1e-3])
    opt.step()
    with pytest.raises(
        ValueError, match=r"expected a peak of .*0.01, got 0.001 where .* 0.002, so that its peak would be 0.5;"
    ):
        opt.set_lr(1e-3)
    opt.param_groups[0]["lr"] = 3e-4
    with pytest.raises(ValueError, match="its peak would be"):
        opt.step()
    opt.param_groups[0]["lr"] = 4e-6
    with pytest.warns(UserWarning, match=r"at 0.002, raises its peak from 0.001 to 0.002"):
        opt.step()
    assert opt.read_lr() == [2e-3 * 0.004]


def test_a_group_that_comes_later_follows_the_curve_from_where_it_is(backend, device):
    opt = build(backend, device, Cosine(8), lrs=[1.0])
    trace(opt, [None] * 3)
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt.add_param_group({"params": [param], "lr": 0.5})
    want = ratios(Cosine(8), 9)[3:]
    assert trace(opt, [None] * 5) == [[ratio, 0.5 * ratio] for ratio in want]


def test_a_curve_longer_than_what_is_staged(backend, device):
    """And one of which only the end is used."""
    schedule = Table([0.001 * i for i in range(2000)])
    opt = build(backend, device, schedule, lrs=[1.0])
    opt._control.slot("step").fill_(1996)
    assert [lr for (lr,) in trace(opt, [None] * 4)[1:]] == [0.001 * i for i in (1997, 1998, 1999, 1999)]
