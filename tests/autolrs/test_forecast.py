"""The forecast against curves that are known, and against numbers that the authors' own code printed."""

import math
import random

import numpy as np
import pytest

from greedylr_fused.autolrs.forecast import exponential, forecast, spline, without_outliers

TOLERANCE = 1e-5  # where the search for the exponent ends


def noisy(n, seed):
    """A falling loss with noise, and a spike early on."""
    draw = random.Random(seed).gauss
    return [2 + 3 * math.exp(-4 * t / n) + 0.1 * draw(0, 1) + (2 if t == 5 else 0) for t in range(n)]


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.1])
def test_a_known_exponential_is_found(rate):
    """Its exponent as near as the search ends, and for that one the best level: between those at both ends."""
    x = np.arange(100.0)
    a, b, c = exponential(x, 2 + 3 * np.exp(-rate * x))
    assert abs(b - math.log(rate)) <= TOLERANCE
    ends = []
    for found in (math.log(rate) - TOLERANCE, math.log(rate) + TOLERANCE):
        columns = np.stack([np.exp(-np.exp(found) * x), np.ones(100)], axis=1)
        ends.append(np.linalg.lstsq(columns, 2 + 3 * np.exp(-rate * x), rcond=None)[0])
    for value, known, at in ((a, 3, 0), (c, 2, 1)):
        assert abs(value - known) <= max(abs(end[at] - known) for end in ends)


def test_a_line_has_no_best_exponent_and_still_an_answer():
    """The sum of squares falls as the exponent does, until both columns are one."""
    a, b, c = exponential(np.arange(50.0), 3 - 0.01 * np.arange(50.0))
    assert all(map(math.isfinite, (a, b, c))) and b < math.log(0.001)
    assert a * math.exp(-math.exp(b) * 20) + c == pytest.approx(2.8, abs=1e-3)


@pytest.mark.parametrize(
    "n, at, seed, validation, theirs",
    [
        (100, 1000, 0, False, 1.8049665542178046),
        (100, 1000, 1, False, 1.7896078011456198),
        (200, 2000, 2, False, 1.8236566570973145),
        (20, 200, 1, False, 1.9250595611794787),
        (16, 160, 0, True, 1.8802045302663408),
        (16, 160, 2, True, 1.699966488232599),
    ],
)
def test_it_is_that_of_the_authors_code(n, at, seed, validation, theirs):
    """Equal bits on the machine that printed them. Others sum in another order, from which the simplex may end one of
    its steps elsewhere: within its tolerance in b, by which the forecast moves less than this.
    """
    assert forecast(noisy(n, seed), at, validation=validation) == pytest.approx(theirs, abs=1e-4)


def test_the_curve_is_a_parabola_for_losses_of_usual_size():
    """Their squares are below 1, where the smoothing spline has no reason for a knot."""
    x, y = np.arange(100.0), np.asarray(noisy(100, 0))
    parabola = np.polynomial.Polynomial.fit(x, y, 2)(x)
    assert spline(x, y)(x) == pytest.approx(parabola, abs=1e-9)
    assert np.abs(spline(x, 1e3 * y)(x) - 1e3 * parabola).max() > 1, "large ones are followed"


def test_early_outliers_are_dropped_and_late_ones_stay():
    y = 2 + np.exp(-np.arange(100) / 30)
    y[[7, 80]] += 3
    kept = set(without_outliers(np.arange(100.0), y, validation=False)[0].astype(int))
    assert 7 not in kept and 80 in kept and kept >= set(range(60, 100))
    assert len(kept) >= 70, "ten rounds of three at most"
    few = set(without_outliers(np.arange(100.0), y, validation=True)[0].astype(int))
    assert few in (set(range(100)) - {7}, set(range(100))), "one at most"


def test_a_validation_loss_out_of_line_is_dropped():
    y = 2 + np.exp(-np.arange(16) / 5)
    y[3] += 2
    assert 3 not in without_outliers(np.arange(16.0), y, validation=True)[0]


def test_three_in_a_hundred_of_few_losses_are_none():
    y = np.asarray([9.0, 1, 8, 1, 7, 1, 6, 1])
    assert len(without_outliers(np.arange(8.0), y, validation=False)[0]) == 8
    assert math.isfinite(forecast(y[:4], 40))
