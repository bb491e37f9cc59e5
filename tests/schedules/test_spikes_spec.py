"""SkipSpikes: its options, and its specification against Python's statistics in exact arithmetic."""

import itertools
import math
import pickle
import random
import statistics
from collections import deque
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest

from greedylr_fused import SkipSpikes
from greedylr_fused.schedules.spikes import LANES, MAX_INTERVAL, SpikeSpec, limit, total


def test_defaults_and_equality():
    config = SkipSpikes()
    assert (config.rolling_interval_length, config.sigma_factor, config.minimum) == (128, 6.0, 64)
    assert config == SkipSpikes(minimum=64) == pickle.loads(pickle.dumps(config)) and hash(config) == hash(SkipSpikes())
    assert SkipSpikes(rolling_interval_length=32).minimum == 16
    assert SkipSpikes(rolling_interval_length=3).minimum == SkipSpikes(rolling_interval_length=2).minimum == 2
    assert type(SkipSpikes(sigma_factor=4).sigma_factor) is float
    assert replace(config, sigma_factor=4.0) == SkipSpikes(sigma_factor=4.0)
    with pytest.raises(FrozenInstanceError):
        config.minimum = 3


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rolling_interval_length": 1}, ValueError, "expected a whole number from 2 to 1024, got 1"),
        ({"rolling_interval_length": MAX_INTERVAL + 1}, ValueError, "write rolling_interval_length=1024"),
        (
            {"rolling_interval_length": 128.0},
            TypeError,
            "expected an int, got 128.0; write rolling_interval_length=128",
        ),
        ({"sigma_factor": 0}, ValueError, "expected a number > 0, got 0.0; write sigma_factor=6.0"),
        ({"sigma_factor": math.inf}, ValueError, "expected a finite number"),
        ({"sigma_factor": "6"}, TypeError, "expected a number (> 0), got '6'"),
        ({"minimum": 1}, ValueError, "expected a whole number from 2 to 128, got 1"),
        ({"minimum": 33, "rolling_interval_length": 32}, ValueError, "from 2 to 32, got 33; write minimum=32"),
    ],
)
def test_bad_options_are_refused(options, error, said):
    with pytest.raises(error) as caught:
        SkipSpikes(**options)
    assert said in str(caught.value) and str(caught.value).startswith(f"SkipSpikes {next(iter(options))}: ")


def exact(values, sigmas):
    """Mean + sigmas deviations, with one rounding of each operation but for the sums, which have none."""
    fractions = [Fraction(x) for x in values]
    return statistics.fmean(fractions) + sigmas * math.sqrt(statistics.variance(fractions))


def samples(seed):
    rng = random.Random(seed)
    for size in (2, 3, 31, 32, 33, 64, 128, 300):
        for scale, offset in itertools.product((1e-100, 1e-3, 1.0, 1e100), (0.0, 1.0, -3.0)):
            yield deque(scale * (offset + rng.gauss(0, 1)) for _ in range(size))


@pytest.mark.parametrize("sigmas", [6.0, -6.0])
def test_the_limit_is_that_of_statistics(sigmas):
    """Of n values a sum over 32 lanes has at most n / 32 + 5 roundings on the way of any value, and a deviation, its
    square and what follows fewer than ten: (n / 32 + 15) u of the sum of all that is added, of either sign.
    """
    for values in samples(3):
        magnitude = max(map(abs, values)) * (1 + abs(sigmas) * math.sqrt(2))
        bound = (len(values) / LANES + 15) * 2.0**-53 * 4 * magnitude
        assert abs(limit(values, 2, sigmas) - exact(values, sigmas)) <= bound


def test_the_order_of_a_sum_is_as_it_says():
    """Numbers whose sum depends on the order: with 1 apart from its neighbour it is lost, beside it, it is not."""
    values = [0.0] * 96
    values[0], values[32], values[1] = 2.0**53, 1.0, 1.0
    assert total(lambda age: values[age], 96) == 2.0**53
    values[32], values[1], values[33] = 0.0, 1.0, 1.0
    assert total(lambda age: values[age], 96) == 2.0**53 + 2
    values[33], values[2] = 0.0, 1.0
    assert total(lambda age: values[age], 96) == 2.0**53
    assert total(lambda age: values[age], 0) == 0.0


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3, 1e300, 5e-324])
def test_equal_values_have_no_limit(value):
    for count in range(2, 130):
        assert math.isnan(limit(deque([value] * count), 2, 6.0))


def test_too_few_values_have_no_limit():
    values = deque([1.0, 2.0, 4.0])
    assert math.isnan(limit(values, 4, 6.0)) and not math.isnan(limit(values, 3, 6.0))


def test_it_judges_as_olmo_core_does():
    """Its rule for each value: skip if it exceeds mean + sigmas of what came before, once there are enough of those."""
    rng, config = random.Random(4), SkipSpikes(rolling_interval_length=16, sigma_factor=3.0, minimum=8)
    spec, losses, norms, skips = SpikeSpec(config), [], [], 0
    for _ in range(2000):
        loss, norm = (rng.gauss(2, 0.1) * rng.choice((1,) * 60 + (2,)) for _ in range(2))
        expected = any(
            len(past) >= 8 and value > statistics.mean(past[-16:]) + 3.0 * statistics.stdev(past[-16:])
            for past, value in ((losses, loss), (norms, norm))
        )
        assert spec.judge(loss, norm) is expected
        losses.append(loss)
        norms.append(norm)
        skips += expected
    assert spec.spikes == skips > 20
    assert list(spec.losses) == losses[-16:] and list(spec.norms) == norms[-16:]


def test_what_is_not_finite_is_passed_over():
    spec = SpikeSpec(SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=1.0))
    for bad in (math.nan, math.inf, -math.inf):
        assert not spec.judge(bad, bad)
    assert not spec.losses and not spec.norms
    for x in (1.0, 2.0, 1.0):
        spec.judge(x, math.nan)
    assert not spec.judge(math.inf, math.nan) and spec.judge(9.0, math.inf)
    assert list(spec.losses) == [1.0, 2.0, 1.0, 9.0] and not spec.norms


def test_a_step_that_is_skipped_anyway_is_no_spike():
    spec = SpikeSpec(SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=1.0))
    for x in (1.0, 2.0, 1.0):
        spec.judge(x, 1.0)
    assert not spec.judge(9.0, 1.0, skipped=True) and spec.spikes == 0 and spec.losses[-1] == 9.0
