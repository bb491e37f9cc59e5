"""Properties of the control step that hold for every configuration and every loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.oracle import COMPARED, Case, Driven, backend_trace, upstream_trace

from greedylr_fused import GreedyLR

losses = st.one_of(
    st.floats(-1e6, 1e6),
    st.integers(-3, 3).map(float),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, 5e-324]),
)


@st.composite
def cases(draw, **fixed):
    lrs = draw(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=3))
    options = {
        "mode": draw(st.sampled_from(["min", "max"])),
        "factor": draw(st.floats(0.05, 0.99)),
        "patience": draw(st.integers(0, 4)),
        "threshold": draw(st.sampled_from([0.0, 1e-6, 0.1])),
        "threshold_mode": draw(st.sampled_from(["abs", "rel"])),
        "cooldown": draw(st.integers(0, 3)),
        "warmup": draw(st.integers(0, 3)),
        "eps": draw(st.sampled_from([0.0, 1e-8])),
        "smooth": draw(st.booleans()),
        "window_size": draw(st.integers(1, 5)),
        "reset_start": draw(st.integers(0, 3)),
    }
    return Case(GreedyLR(**(options | fixed)), lrs, draw(st.lists(losses, min_size=1, max_size=25)))


def lr_rows(case, trace):
    """LRs before and after each observation."""
    rows = [case.lrs, *(row[: len(case.lrs)] for row in trace)]
    return list(zip(rows, rows[1:], strict=False))


def column(case, row, name):
    return row[len(case.lrs) + COMPARED.index(name)]


@given(case=cases())
def test_lr_stays_within_bounds(backend, device, case):
    bounds = [case.config.bounds(lr, g) for g, lr in enumerate(case.lrs)]
    for row in backend_trace(backend, device, case):
        assert all(low <= lr <= high for lr, (low, high) in zip(row, bounds, strict=False))


@given(case=cases())
def test_lr_changes_at_most_once_per_patience_plus_one(backend, device, case):
    changes = [i for i, (a, b) in enumerate(lr_rows(case, backend_trace(backend, device, case))) if a != b]
    gaps = [b - a for a, b in zip([-1, *changes], changes, strict=False)]
    assert all(gap >= case.config.patience + 1 for gap in gaps)


@given(case=cases())
def test_every_change_is_a_raise_a_cut_or_a_reset(backend, device, case):
    bounds = [case.config.bounds(lr, g) for g, lr in enumerate(case.lrs)]
    for before, after in lr_rows(case, backend_trace(backend, device, case)):
        raised = [min(lr / case.config.factor, high) for lr, (_, high) in zip(before, bounds, strict=True)]
        cut = [max(lr * case.config.factor, low) for lr, (low, _) in zip(before, bounds, strict=True)]
        moves = [
            all(new in (old, to) for old, new, to in zip(before, after, target, strict=True))
            for target in (raised, cut)
        ]
        assert any(moves) or after == case.lrs


@given(case=cases(eps=0.0))
def test_groups_with_room_move_together(backend, device, case):
    """One decision for all groups: no LR rises while another falls."""
    for before, after in lr_rows(case, backend_trace(backend, device, case)):
        if after != case.lrs:  # a reset may do both
            signs = {(new > old) - (new < old) for old, new in zip(before, after, strict=True)} - {0}
            assert len(signs) <= 1


@given(case=cases())
def test_a_reset_restores_the_start(backend, device, case):
    worst = -math.inf if case.config.mode == "max" else math.inf
    seen_best = False
    for row in backend_trace(backend, device, case):
        best = column(case, row, "best")
        if seen_best and best == worst:
            assert row[: len(case.lrs)] == case.lrs
            assert column(case, row, "resets_left") == case.config.reset_start
            assert column(case, row, "cooldown_left") == case.config.cooldown
            for name in ("good", "bad", "warmup_left", "window_sum", "window_count"):
                assert column(case, row, name) == 0.0
        seen_best = best != worst


@given(case=cases())
def test_counters_stay_in_range(backend, device, case):
    config = case.config
    for row in backend_trace(backend, device, case):
        at = {name: column(case, row, name) for name in COMPARED}
        assert 0 <= at["good"] <= config.patience and 0 <= at["bad"] <= config.patience
        assert at["good"] == 0 or at["bad"] == 0
        assert 0 <= at["cooldown_left"] <= config.cooldown and 0 <= at["warmup_left"] <= config.warmup
        assert at["resets_left"] <= config.reset_start
        assert 0 <= at["window_count"] <= (config.window_size if config.smooth else 0)
        assert not math.isnan(at["best"]) and math.isfinite(at["window_sum"])


@given(case=cases(smooth=False))
def test_best_only_improves_between_resets(backend, device, case):
    sign = -1.0 if case.config.mode == "max" else 1.0
    last = math.inf
    for row in backend_trace(backend, device, case):
        best = sign * column(case, row, "best")
        assert best == math.inf or best <= last or (case.config.threshold_mode == "rel" and last <= 0)
        last = best


@given(case=cases(), exponent=st.integers(-8, 8))
def test_the_scale_of_weights_is_of_no_matter(backend, device, case, exponent):
    """One observation with weight w is the same observation with weight 1 (powers of two: exact)."""
    weight = 2.0**exponent
    driven = Driven(backend, device, case.config, case.lrs)
    rows = [[x * weight, weight] for x in case.losses if not 0 < abs(x) < 1e-300 and abs(x) < 1e300]
    got = [driven.observe(torch.tensor(row, dtype=torch.float64, device=device)).tolist() for row in rows]
    if rows:
        case = Case(case.config, case.lrs, [x / w for x, w in rows])
        assert got == backend_trace(backend, device, case)


@given(case=cases())
def test_running_is_resumable_at_every_point(backend, device, case):
    """The vector is all the state there is: a copy of it goes on to the same LRs."""
    half = len(case.losses) // 2
    first = Driven(backend, device, case.config, case.lrs)
    rows = torch.tensor([[x, 1.0] for x in case.losses], dtype=torch.float64, device=device)
    for row in rows[:half]:
        first.observe(row)
    second = Driven(backend, device, case.config, case.lrs)
    second.control.load(first.control.numbers())
    for row in rows[half:]:
        assert first.observe(row).tolist() == second.observe(row).tolist()


@pytest.mark.parametrize("window", [1, 2, 500])
def test_window_sum_follows_upstreams_drift(backend, device, window):
    """One huge loss destroys a running sum for good: so it does upstream, and the bits agree."""
    config = GreedyLR(smooth=True, window_size=window, patience=0)
    case = Case(config, [0.1], [1.0, 1e17, 1.0, 1.0, 1.0, 0.3, 0.1])
    assert backend_trace(backend, device, case) == upstream_trace(case)
