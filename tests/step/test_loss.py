"""Ways to give a loss, and what happens without one."""

import math
from fractions import Fraction

import numpy
import pytest
import torch
from support.tensors import FLOATS, assert_same, parameter, short, snapshot

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR

GREEDY = GreedyLR(patience=0, factor=0.5, smooth=False)


def build(schedule=GREEDY, **options):
    return FusedAdamW([parameter(torch.zeros(3), torch.ones(3))], lr=1.0, schedule=schedule, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensors_of_one_element(dtype, shape):
    opt = build()
    opt.step(loss=torch.full(shape, 2.5, dtype=dtype))
    assert opt.metrics().loss == 2.5 and opt.read_lr() == [2.0]


@pytest.mark.parametrize(
    "loss",
    [2, 2.0, torch.tensor(2), torch.tensor(2.0, requires_grad=True), torch.tensor(2.0).to(torch.float8_e4m3fn)],
    ids=repr,
)
def test_numbers_and_others(loss):
    opt = build()
    opt.step(loss=loss)
    assert opt.metrics().loss == 2.0


def test_a_loss_keeps_all_its_bits():
    for loss in (0.1, math.pi, 1e300, 5e-324):
        for value in (loss, torch.tensor(loss, dtype=torch.float64)):
            opt = build()
            opt.step(loss=value)
            assert opt.metrics().loss == loss


def test_a_loss_with_a_graph_is_not_kept_alive():
    opt = build()
    leaf = torch.ones(1, requires_grad=True)
    opt.step(loss=(leaf * 2).sum())
    assert not opt._control.vector.requires_grad


def test_closure():
    param = parameter(torch.ones(3))
    opt = FusedAdamW([param], lr=1.0, schedule=GreedyLR(patience=0, factor=0.5, smooth=False))

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    result = opt.step(closure)
    assert result.item() == 3.0 and opt.metrics().loss == 3.0 and opt.read_lr() == [2.0]


def test_a_closure_that_observes_is_not_counted_again():
    """As under Lightning, where a callback observes each micro-batch, the last one within the closure."""
    opt = build()

    def closure():
        opt.observe(3.0)
        return torch.tensor(100.0)

    opt.observe(1.0)
    assert opt.step(closure).item() == 100.0 and opt.metrics().loss == 2.0
    opt.observe(1.0)
    with pytest.raises(ValueError, match="more than once"):
        opt.step(closure, loss=1.0)
    opt.step(closure)
    assert opt.metrics().loss == (1.0 + 3.0 + 3.0) / 3


def test_a_closure_that_raises_leaves_no_loss():
    """Its step is tried again, from the beginning."""
    opt, fails = build(), [True]

    def closure():
        opt.observe(300.0 if fails else 3.0)
        if fails:
            raise MemoryError
        return torch.tensor(1.0)

    opt.observe(100.0)
    with pytest.raises(MemoryError):
        opt.step(closure)
    fails.clear()
    opt.step(closure)
    assert opt.metrics().loss == 3.0


@pytest.mark.parametrize("kind", [FusedAdamW, DeviceSchedule])
def test_observed_losses_that_are_discarded(kind):
    opt = build()
    if kind is DeviceSchedule:
        adamw = torch.optim.AdamW([parameter(torch.ones(2), torch.ones(2))], lr=torch.tensor(1.0))
        opt = DeviceSchedule(adamw, GreedyLR(smooth=False))
    opt.observe(100.0, weight=7)
    opt.discard_observed()
    with pytest.raises(RuntimeError, match="expected a loss, .*got none"):
        opt.step()
    opt.observe(3.0)
    opt.step()
    assert opt.metrics().loss == 3.0
    opt.discard_observed()  # of nothing
    opt.step(loss=5.0)
    assert opt.metrics().loss == 5.0


def test_closure_returns_with_and_without_a_schedule():
    opt = build(None)
    assert opt.step(lambda: None) is None
    assert opt.step(lambda: "text") == "text"
    assert opt.step(lambda: (1, 2)) == (1, 2)
    assert opt.step(lambda: 4.0) == 4.0 and opt.metrics().loss == 4.0
    with pytest.raises(TypeError, match="loss: expected a number .*, got str"):
        build().step(lambda: "text")
    with pytest.raises(RuntimeError, match="expected a loss, .*got none"):
        build().step(lambda: None)


def test_observe_is_a_weighted_mean():
    opt = build()
    opt.observe(1.0)
    opt.observe(torch.tensor(3.0), weight=2)
    opt.observe(torch.tensor([5.0], dtype=torch.bfloat16), weight=torch.tensor(1))
    opt.step()
    assert opt.metrics().loss == (1 + 6 + 5) / 4


def test_observed_losses_belong_to_one_step():
    opt = build()
    opt.observe(1.0)
    opt.step()
    with pytest.raises(RuntimeError, match="expected a loss, .*got none"):
        opt.step()
    opt.step(loss=7.0)
    assert opt.metrics().loss == 7.0


def test_no_loss_names_the_three_ways():
    opt = build()
    before = snapshot(opt)
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    for way in ("step(loss=loss)", "closure", "observe(loss)"):
        assert way in str(caught.value)
    assert_same(snapshot(opt), before)


def test_given_twice():
    opt = build()
    before = snapshot(opt)
    with pytest.raises(ValueError, match="more than once.*drop all but one"):
        opt.step(lambda: 1.0, loss=2.0)
    assert_same(snapshot(opt), before)
    opt.observe(1.0)
    with pytest.raises(ValueError, match="more than once"):
        opt.step(loss=2.0)
    opt.step()
    assert opt.metrics().loss == 1.0


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.ones(2), ValueError, r"shape \(2,\).*loss.mean\(\)"),
        (torch.ones(0), ValueError, r"shape \(0,\)"),
        ("1.0", TypeError, "got str"),
        ([1.0], TypeError, "got list"),
        (True, TypeError, "got bool"),
    ],
    ids=repr,
)
def test_refused(loss, error, message):
    for give in (lambda opt: opt.step(loss=loss), lambda opt: opt.observe(loss)):
        opt = build()
        before = snapshot(opt)
        with pytest.raises(error, match=message):
            give(opt)
        assert_same(snapshot(opt), before)
        opt.step(loss=1.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_refused_weights(weight):
    opt = build()
    with pytest.raises(ValueError, match="weight.*>= 0"):
        opt.observe(1.0, weight=weight)
    opt.step(loss=1.0)


@pytest.mark.parametrize("loss", [3.0, torch.tensor(3.0)], ids=repr)
def test_weights_of_any_number_type(loss):
    opt = build()
    for weight in (Fraction(1, 2), numpy.float32(0.5), numpy.int64(1), True + 1):
        opt.observe(loss, weight=weight)
    opt.step()
    assert opt.metrics().loss == 3.0


@pytest.mark.parametrize("weight", ["2", None, [1.0], torch.ones(2)], ids=repr)
def test_weights_of_another_type(weight):
    opt = build()
    before = snapshot(opt)
    with pytest.raises((TypeError, ValueError), match="weight"):
        opt.observe(1.0, weight=weight)
    assert_same(snapshot(opt), before)


def test_without_a_schedule_a_loss_is_recorded():
    opt = build(None)
    opt.step(loss=torch.tensor(2.0))
    opt.step()
    metrics = opt.metrics()
    assert (metrics.loss, metrics.smoothed_loss, metrics.step, metrics.lr) == (2.0, 2.0, 2, (1.0,))


def test_metrics_before_the_first_step():
    metrics = build().metrics()
    assert metrics.step == 0 and metrics.skipped == 0 and metrics.lr == (1.0,) and metrics.best == math.inf
    assert math.isnan(metrics.loss) and math.isnan(metrics.grad_norm) and math.isnan(metrics.smoothed_loss)


def test_metrics_of_a_run():
    opt = build(GreedyLR(smooth=True, window_size=2, patience=5), max_grad_norm=1.0)
    for loss in (4.0, 2.0, 9.0):
        opt.step(loss=loss)
    metrics = opt.metrics()
    assert (metrics.step, metrics.loss, metrics.smoothed_loss, metrics.best) == (3, 9.0, 5.5, 3.0)
    assert metrics.grad_norm == 3**0.5
