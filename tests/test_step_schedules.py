"""Step schedules against the schedulers of transformers, to the bit, and of torch, within the rounding of theirs."""

import math

import pytest
import torch
from schedule_oracle import our_lrs, runs, upstream_lrs
from transformers import optimization as upstream

from greedylr_fused.schedules import Constant, Linear, Polynomial

HALF_ULP = 2.0**-53  # of a float64, relative: the error of one rounding
BEYOND = 9  # steps compared after the end


def test_constant():
    for _, _, warmup, lr in runs(0, 20):
        theirs = upstream_lrs(upstream.get_constant_schedule_with_warmup, warmup + BEYOND, lr, num_warmup_steps=warmup)
        assert our_lrs(Constant(warmup_steps=warmup), warmup + BEYOND, lr) == theirs
    assert list(Constant().curve()) == [1.0]


def test_linear():
    for _, total, warmup, lr in runs(1, 60):
        options = {"num_warmup_steps": warmup, "num_training_steps": total}
        theirs = upstream_lrs(upstream.get_linear_schedule_with_warmup, total + BEYOND, lr, **options)
        assert our_lrs(Linear(total, warmup_steps=warmup), total + BEYOND, lr) == theirs


def test_linear_is_torch_s():
    """LinearLR multiplies the last LR by 1 + q, q = (floor - 1) / (T + (t - 1)(floor - 1)): per step two roundings, and
    those of q, which the subtraction in it magnifies; over all steps at most 5 / floor**3. Ours has five.
    """
    for rng, total, _, lr in runs(2, 20):
        floor = rng.choice([0.1, 0.5, 1.0])
        options = {"start_factor": 1.0, "end_factor": floor, "total_iters": total}
        theirs = upstream_lrs(torch.optim.lr_scheduler.LinearLR, total + BEYOND, lr, **options)
        ours = our_lrs(Linear(total, min_lr_ratio=floor), total + BEYOND, lr)
        assert ours == pytest.approx(theirs, rel=(2 * total + 5 / floor**3 + 5) * HALF_ULP, abs=0)


def test_polynomial():
    for rng, total, warmup, lr in runs(3, 60):
        power, floor = rng.choice([1.0, 2, 0.5, rng.uniform(0.1, 5.0)]), rng.choice([0.0, 0.1, rng.random() * 0.999])
        ours = Polynomial(total, warmup_steps=warmup, min_lr_ratio=floor, power=power)
        steps = total if warmup == total else total + BEYOND  # upstream divides by zero at the end of all warm-up
        options = {"num_warmup_steps": warmup, "num_training_steps": total, "power": power}
        decay = upstream.get_polynomial_decay_schedule_with_warmup
        assert our_lrs(ours, steps, 1.0) == upstream_lrs(decay, steps, 1.0, lr_end=floor, **options)
        # With another peak upstream rounds lr_end, the range, the product, the sum, the quotient and the LR, and we
        # 1 - floor, the product, the sum and the LR: in units of the LR nine at most, and the tenth for what is of
        # second order.
        theirs = upstream_lrs(decay, steps, lr, lr_end=floor * lr, **options)
        assert our_lrs(ours, steps, lr) == pytest.approx(theirs, rel=10 * HALF_ULP, abs=0)


def test_polynomial_is_torch_s():
    """PolynomialLR multiplies the last LR by (a / b) ** power with a = 1 - t / T, b of the step before: a has a
    relative error of T / (T - t) + 1, whose sum over the steps is at most T (ln T + 2), b as much; the rest is 4 each.
    """
    for rng, total, _, lr in runs(4, 20):
        power = rng.choice([1.0, 2.0, 0.5])
        options = {"total_iters": total, "power": power}
        theirs = upstream_lrs(torch.optim.lr_scheduler.PolynomialLR, total + BEYOND, lr, **options)
        ours = our_lrs(Polynomial(total, power=power), total + BEYOND, lr)
        rel = (1 + power) * total * (2 * math.log(total) + 10) * HALF_ULP
        assert ours == pytest.approx(theirs, rel=rel, abs=0)


def test_all_warm_up_goes_on_at_the_floor():
    """Where the run has no decay, a line and its powers are at their end already."""
    for schedule in (Linear(4, warmup_steps=4, min_lr_ratio=0.5), Polynomial(4, warmup_steps=4, min_lr_ratio=0.5)):
        assert list(schedule.curve()) == [0.0, 0.25, 0.5, 0.75, 0.5]
