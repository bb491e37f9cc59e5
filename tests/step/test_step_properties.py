"""What holds of every step schedule, whatever its options: bounds, ends, identities between the members."""

import math
import pickle

import hypothesis.strategies as st
import pytest
from hypothesis import given

from greedylr_fused.schedules import (
    REX,
    UBA,
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    Linear,
    OneCycle,
    Polynomial,
    Table,
)

HALF_ULP = 2.0**-53
ratios = st.floats(0.0, 1.0)


@st.composite
def runs(draw, falling=False):
    """The options that every schedule of a fixed length has."""
    total = draw(st.integers(1, 80))
    most = total - 1 if falling else total
    return {"total_steps": total, "warmup_steps": draw(st.integers(0, most)), "min_lr_ratio": draw(ratios)}


@st.composite
def falling(draw):
    """A schedule that falls once, from the peak to the floor."""
    kinds = [
        (Linear, {}),
        (Polynomial, {"power": draw(st.floats(0.01, 100.0))}),
        (Cosine, {}),
        (CosineRestarts, {}),
        (REX, {"d": draw(st.floats(0.0, 1.0, exclude_max=True))}),
        (UBA, {"phi": draw(st.floats(0.0, 1e308, exclude_min=True))}),
    ]
    kind, options = draw(st.sampled_from(kinds))
    return kind(**draw(runs(falling=True)), **options)


@given(falling())
def test_falls_from_the_peak_to_the_floor(schedule):
    warmup, floor = schedule.warmup_steps, schedule.min_lr_ratio
    curve = schedule.curve()
    assert curve[:warmup].tolist() == [n / warmup for n in range(warmup)]
    fall = curve[warmup:].tolist()
    assert len(curve) == schedule.total_steps + 1
    assert fall[0] == 1.0 and fall[-1] == floor and all(floor <= value <= 1.0 for value in fall)
    # Monotonic, but for rounding: cosine, sum, complement, product, sum, quotient, product and sum have half a unit
    # each, a cosine one more, and two neighbours may err in opposite directions.
    assert all(after <= before + 18 * HALF_ULP for before, after in zip(fall[:-1], fall[1:], strict=True))


@given(
    runs(),
    st.sampled_from(["waves", "restarts", "growing", "wsd", "one cycle"]),
    st.floats(0.01, 40.0),
    st.integers(1, 100),
    st.integers(1, 4),
    st.sampled_from(["linear", "cosine", "1-sqrt"]),
)
def test_stays_between_the_floor_and_the_peak(run, kind, cycles, count, mult, shape):
    total, warmup, floor = run["total_steps"], run["warmup_steps"], run["min_lr_ratio"]
    schedules = {
        "waves": lambda: Cosine(**run, num_cycles=cycles),
        "restarts": lambda: CosineRestarts(**run, num_cycles=count),
        "growing": lambda: CosineRestarts(**run, first_steps=count, mult=mult),
        "wsd": lambda: (
            WSD(**run, decay_steps=max(1, total - warmup), warmup_type=shape, decay_type=shape)
            if warmup < total
            else WSD(warmup_steps=warmup, min_lr_ratio=floor, warmup_type=shape)
        ),
        "one cycle": lambda: OneCycle(total, pct_start=floor / mult, div_factor=1.0 + cycles, final_div_factor=mult),
    }
    schedule = schedules[kind]()
    curve = schedule.curve().tolist()
    low = 0.0 if kind == "one cycle" else floor
    assert all(low <= value <= 1.0 for value in curve[warmup:]) and all(0.0 <= value <= 1.0 for value in curve)
    assert pickle.loads(pickle.dumps(schedule)).curve() == schedule.curve()


@given(runs(), st.floats(1e-3, 1e3))
def test_members_of_one_family(run, phi):
    """The line and the cosine are in it, to the bit, and the paper's own form of UBA is the one computed."""
    assert REX(**run, d=0.0).curve() == Linear(**run).curve()
    assert UBA(**run, phi=2.0).curve() == Cosine(**run).curve()
    total = run["total_steps"]
    for n, value in enumerate(UBA(total, phi=phi).curve().tolist()[:-1]):  # at the end the paper's may be 0 / 0
        cosine = 1 + math.cos(math.pi * n / total)
        # The two cosines differ by the rounding of the argument, twice two of pi, and of cosine and sum: as a share c
        # of 2 by less than 10. The bend magnifies that by its slope, from 2 / phi at c = 0 to phi / 2 at c = 1, and so
        # does what the paper's denominator cancels near c = 1, four of 2 phi in 4. The other roundings are ten.
        slope = max(2 / phi, phi / 2, 1.0)
        paper = 2 * cosine / (2 * phi + (2 - phi) * cosine)
        assert value == pytest.approx(paper, rel=0, abs=24 * slope * HALF_ULP)


def test_the_smallest_phi_is_a_constant_that_ends():
    """Half of it underflows, and the bend of 0 would be 0 / 0."""
    assert UBA(2, phi=5e-324).curve().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.filterwarnings("ignore:Table. its largest value")
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
def test_a_table_is_its_values(values):
    assert Table(values).curve().tolist() == values == list(Table(tuple(values)).values)


def test_long_runs():
    """A value per step and 8 bytes per value, at any length."""
    for schedule in (UBA(10**5, phi=1.0), WSD(10**5, decay_steps=10**4), Table([0.5] * (10**5 + 1))):
        curve = schedule.curve()
        assert len(curve) == 10**5 + 1 and curve.itemsize == 8
    assert len(Constant(warmup_steps=7).curve()) == 8  # as much as there is to say
    assert Linear(2**25, warmup_steps=2**25).total_steps == 2**25
