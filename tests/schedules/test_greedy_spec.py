"""The specification of GreedyLR in plain floats, which all device forms follow: against transformers and by hand."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import TRACES
from support.oracle import Case, assert_same_trace, random_cases, spec_trace, upstream_trace, with_nonfinite

from greedylr_fused import GreedyLR
from greedylr_fused.schedules import LossSpec


@pytest.mark.parametrize("trace", TRACES)
def test_golden_trace(trace):
    trace = TRACES[trace]
    spec = LossSpec(trace.config, [trace.lr])
    for i, row in enumerate(trace.rows):
        assert spec.observe(row.loss) == [row.lr], f"row {i}: {row.reason}"
        assert {name: getattr(spec, name) for name in row.expected} == row.expected, f"row {i}: {row.reason}"


def test_the_golden_traces_are_transformers():
    for trace in TRACES.values():
        case = Case(trace.config, [trace.lr], [row.loss for row in trace.rows])
        assert_same_trace(spec_trace(case), upstream_trace(case), case)


def test_one_hundred_thousand_random_steps():
    total = 0
    for case in random_cases(seed=1, steps=100_000):
        assert_same_trace(spec_trace(case), upstream_trace(case), case)
        total += len(case.losses)
    assert total == 100_000


def test_the_random_cases_reach_every_branch():
    """Otherwise the comparison above would prove little."""
    reached = dict.fromkeys(("raise", "cut", "cooling", "warming", "full window", "evicting", "reset", "at floor"), 0)
    for case in random_cases(seed=1, steps=20_000):
        spec, before = LossSpec(case.config, case.lrs), list(case.lrs)
        for loss in case.losses:
            best, full = spec.best, len(spec.window) == case.config.window_size
            reached["cooling"] += spec.cooldown_left > 0
            reached["warming"] += spec.warmup_left > 0
            after = spec.observe(loss)
            reached["raise"] += after > before
            reached["cut"] += after < before
            reached["full window"] += full and case.config.smooth
            reached["evicting"] += full and case.config.smooth and case.config.window_size >= 50
            reached["reset"] += math.isinf(spec.best) and math.isfinite(best)
            reached["at floor"] += spec.resets_left < case.config.reset_start
            before = after
    assert all(count > 50 for count in reached.values()), reached


def test_nonfinite_losses_leave_window_and_best():
    rng = random.Random(3)
    for case in random_cases(seed=2, steps=5_000):
        spec = LossSpec(case.config, case.lrs)
        for loss in with_nonfinite(rng, case.losses):
            before = (spec.best, spec.window_sum, list(spec.window))
            spec.observe(loss)
            if not math.isfinite(loss) and spec.window_sum != 0.0 and not math.isinf(spec.best):
                assert (spec.best, spec.window_sum, list(spec.window)) == before


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40), st.integers(1, 8))
def test_the_window_holds_the_last_losses(losses, size):
    spec = LossSpec(GreedyLR(smooth=True, window_size=size, patience=1000), [1.0])
    for loss in losses:
        spec.observe(loss)
    assert list(spec.window) == losses[-size:]
    assert spec.window_sum == pytest.approx(math.fsum(losses[-size:]), abs=1e-9)
