"""Which steps are spikes: every backend decides to the bit as the specification does."""

import math
import random

import pytest
from support.spikes import Clipped, values

from greedylr_fused import ReduceOnPlateau, SkipSpikes
from greedylr_fused.schedules.spikes import limit


@pytest.mark.parametrize("size", [2, 3, 31, 32, 33, 128, 300])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_decision_is_that_of_the_specification(backend, device, budget, size, mode):
    rng = random.Random(f"{size} {mode}")
    schedule = ReduceOnPlateau(mode=mode) if mode == "max" or size % 2 else None
    rounds = budget.rounds
    for _ in range(rounds):
        config = SkipSpikes(rolling_interval_length=size, sigma_factor=rng.choice((1.0, 3.0, 6.0)), minimum=2)
        clipped = Clipped(backend, device, config, schedule)
        count = min(3 * size + 20, 60 * budget.rounds)
        for loss, norm in zip(values(rng, count), values(rng, count), strict=True):
            bad = rng.random()
            loss = rng.choice((math.nan, math.inf, -math.inf)) if bad < 0.03 else loss
            norm = math.inf if 0.03 < bad < 0.06 else norm
            clipped.take(loss, norm, found_inf=0.05 < bad < 0.1, weight=rng.choice((1.0, 1.0, 3.0, 0.0)))
        clipped.check()
        assert clipped.spec.losses and clipped.spec.norms


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_limit_has_the_bits_of_the_specification(backend, device, budget, mode):
    """A loss on the limit is none that is beyond it; the next number is."""
    rng = random.Random(5)
    config = SkipSpikes(rolling_interval_length=40, sigma_factor=2.0, minimum=2)
    clipped = Clipped(backend, device, config, ReduceOnPlateau(mode=mode))
    worse, sigmas = (math.inf, 2.0) if mode == "min" else (-math.inf, -2.0)
    for step in range(20 * budget.rounds):
        clipped.take(rng.gauss(3, 1), 1.0)
        edge = limit(clipped.spec.losses, 2, sigmas)
        if step > 2 and rng.random() < 0.5:
            assert not clipped.take(edge, 1.0)
        elif step > 2:
            assert clipped.take(math.nextafter(edge, worse), 1.0)
    clipped.check()
