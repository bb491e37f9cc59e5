"""Step schedules against the schedulers of transformers, to the bit, and of torch, within the rounding of theirs."""

import functools
import math

import pytest
import torch
from support.schedule_oracle import our_lrs, runs, upstream_lrs
from transformers import optimization as upstream

from greedylr_fused.schedules import REX, UBA, WSD, Constant, Cosine, CosineRestarts, Linear, OneCycle, Polynomial

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


def test_cosine():
    for rng, total, warmup, lr in runs(5, 60):
        cycles, floor = rng.choice([0.5, 1, 0.25, 3.5, rng.uniform(0.1, 5.0)]), rng.choice([0, 0.1, rng.random(), 1.0])
        steps = total + (warmup < total)  # one after the run too, unless it is all warm-up
        options = {"num_warmup_steps": warmup, "num_training_steps": total, "num_cycles": cycles}
        ours = Cosine(total, warmup_steps=warmup, num_cycles=cycles)
        theirs = upstream_lrs(upstream.get_cosine_schedule_with_warmup, steps, lr, **options)
        assert our_lrs(ours, steps, lr) == theirs
        with_floor = upstream.get_cosine_with_min_lr_schedule_with_warmup
        ours = Cosine(total, warmup_steps=warmup, num_cycles=cycles, min_lr_ratio=floor)
        assert our_lrs(ours, steps, lr) == upstream_lrs(with_floor, steps, lr, min_lr_rate=floor, **options)


def test_cosine_is_torch_s():
    """CosineAnnealingLR multiplies by the ratio of two terms, which telescope: four roundings per step remain. The last
    of them differs from ours by the rounding of cosine and argument (of which either has two, times pi): 20 in all.
    """
    for rng, total, _, lr in runs(6, 20):
        floor = rng.choice([0.0, 0.1, 1.0])
        options = {"T_max": total, "eta_min": floor * lr}
        theirs = upstream_lrs(torch.optim.lr_scheduler.CosineAnnealingLR, total + 1, lr, **options)
        ours = our_lrs(Cosine(total, min_lr_ratio=floor), total + 1, lr)
        assert ours == pytest.approx(theirs, rel=0, abs=(4 * total + 20) * HALF_ULP * lr)


def test_cosine_stays_at_the_end():
    """Where transformers goes on along the wave, and up again."""
    options = {"num_warmup_steps": 0, "num_training_steps": 10}
    theirs = upstream_lrs(upstream.get_cosine_schedule_with_warmup, 16, 1.0, **options)
    assert theirs[10] == 0.0 and theirs[15] > 0.4
    assert our_lrs(Cosine(10), 16, 1.0) == theirs[:10] + [0.0] * 6


def test_restarts():
    for rng, total, warmup, lr in runs(7, 60):
        cycles = rng.choice([1, 2, 3, 7, rng.randint(1, 2 * total)])
        steps = total if warmup == total else total + BEYOND
        options = {"num_warmup_steps": warmup, "num_training_steps": total, "num_cycles": cycles}
        theirs = upstream_lrs(upstream.get_cosine_with_hard_restarts_schedule_with_warmup, steps, lr, **options)
        assert our_lrs(CosineRestarts(total, warmup_steps=warmup, num_cycles=cycles), steps, lr) == theirs


def test_restarts_of_growing_length():
    for rng, total, _, lr in runs(8, 60):
        first, mult, floor = rng.randint(1, 20), rng.choice([1, 1, 2, 3]), rng.choice([0.0, 0.1, rng.random()])
        ours = CosineRestarts(total, first_steps=first, mult=mult, min_lr_ratio=floor)
        theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
        options = {"T_0": first, "T_mult": mult}
        assert our_lrs(ours, total, 1.0) == upstream_lrs(theirs, total, 1.0, eta_min=floor, **options)
        # With another peak: floor, range, product and sum are rounded there, and here range, product, sum and LR; the
        # floor's rounding is in the range once more, and the tenth is for what is of second order.
        expected = upstream_lrs(theirs, total, lr, eta_min=floor * lr, **options)
        assert our_lrs(ours, total, lr) == pytest.approx(expected, rel=0, abs=10 * HALF_ULP * lr)
        assert ours.curve()[total] == floor  # the run is over, wherever in a fall that is
        assert (
            CosineRestarts(total + 3, warmup_steps=3, first_steps=first, mult=mult).curve()[3:]
            == CosineRestarts(total, first_steps=first, mult=mult).curve()
        )


def test_wsd():
    types = ["linear", "cosine", "1-sqrt"]
    for rng, total, warmup, lr in runs(9, 150):
        warmup = min(warmup, total - 1)
        options = {
            "warmup_type": rng.choice(types),
            "decay_type": rng.choice(types),
            "min_lr_ratio": rng.choice([0, 0.1, rng.random(), 1.0]),
            "num_cycles": rng.choice([0.5, 0.5, 2, rng.uniform(0.1, 3.0)]),
        }
        decay = rng.choice([1, total - warmup, rng.randint(1, total - warmup)])
        theirs = upstream_lrs(
            upstream.get_wsd_schedule,
            total + BEYOND,
            lr,
            num_warmup_steps=warmup,
            num_decay_steps=decay,
            num_training_steps=total,
            **options,
        )
        ours = WSD(total, warmup_steps=warmup, decay_steps=decay, **options)
        assert our_lrs(ours, total + BEYOND, lr) == theirs
        # the open-ended form, told to decay so that it ends in the same step
        late = WSD(warmup_steps=warmup, **options)
        stable = [1.0] * (total - warmup - decay)
        assert late.curve()[:-1].tolist() + stable + late.decay(decay).tolist() == ours.curve().tolist()
        assert late.curve()[-1] == 1.0 and len(late.curve()) == warmup + 1
        assert len(late.decay(decay)) == decay + 1 and late.decay(decay)[-1] == options["min_lr_ratio"]


def test_one_cycle():
    for rng, total, _, lr in runs(10, 120):
        three_phase = rng.random() < 0.5
        options = {
            "pct_start": rng.choice([0.3, 0.25, 0.0, 0.5 if three_phase else 1.0, rng.uniform(0.0, 0.5)]),
            "anneal_strategy": rng.choice(["cos", "linear"]),
            "div_factor": rng.choice([25.0, 1.0, rng.uniform(1.0, 50.0)]),
            "final_div_factor": rng.choice([1e4, 1.0, rng.uniform(1.0, 100.0)]),
            "three_phase": three_phase,
        }
        if options["pct_start"] * total == 1:
            continue  # torch divides by zero; the next test
        theirs, ours = torch.optim.lr_scheduler.OneCycleLR, OneCycle(total, **options)
        upstream_options = {"total_steps": total, "cycle_momentum": False, **options}
        assert our_lrs(ours, total, 1.0) == upstream_lrs(theirs, total, 1.0, max_lr=1.0, **upstream_options)
        # With another peak: start, end, their difference, product and sum are rounded on either side, of which start
        # and end enter twice, eight in all, and here the LR.
        expected = upstream_lrs(theirs, total, lr, max_lr=lr, **upstream_options)
        assert our_lrs(ours, total, lr) == pytest.approx(expected, rel=0, abs=17 * HALF_ULP * lr)


def test_one_cycle_that_starts_at_the_peak():
    with pytest.raises(ZeroDivisionError):
        upstream_lrs(torch.optim.lr_scheduler.OneCycleLR, 4, 1.0, max_lr=1.0, total_steps=4, pct_start=0.25)
    curve = OneCycle(4, pct_start=0.25, anneal_strategy="linear", div_factor=2.0, final_div_factor=2.0).curve()
    assert curve.tolist() == [1.0, 0.75, 0.5, 0.25]


SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
GOLDEN = [  # at these shares of the run, from implementations of the papers, to six digits
    ((1, 0.947368, 0.857143, 0.666667, 0.4, 0.181818, 0), REX(20)),
    ((1, 0.989011, 0.967742, 0.909091, 0.769231, 0.526316, 0), REX(20, d=0.9)),
    ((1, 0.993768, 0.958871, 0.8, 0.406983, 0.091192, 0), UBA(20, phi=0.5)),
    ((1, 0.987613, 0.920991, 0.666667, 0.255479, 0.047774, 0), UBA(20, phi=1)),
    ((1, 0.975528, 0.853553, 0.5, 0.146447, 0.024472, 0), UBA(20, phi=2)),
    ((1, 0.940987, 0.699823, 0.285714, 0.064222, 0.009935, 0), UBA(20, phi=5)),
]


@pytest.mark.parametrize(("golden", "schedule"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_values(golden, schedule):
    curve = schedule.curve()
    assert [curve[round(20 * share)] for share in SHARES] == pytest.approx(golden, rel=0, abs=5e-7)


def test_all_warm_up_goes_on_at_the_floor():
    """Where a run has no decay, all are at its end already."""
    for kind in (Linear, Polynomial, Cosine, CosineRestarts, REX, functools.partial(UBA, phi=2.0)):
        schedule = kind(4, warmup_steps=4, min_lr_ratio=0.25)
        assert list(schedule.curve()) == [0.0, 0.25, 0.5, 0.75, 0.25]
