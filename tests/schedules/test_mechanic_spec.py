"""Mechanic's rule: a float64 specification against its golden values and optax's, and the package's own against it."""

import dataclasses
import json
import math
import random

import pytest
from support import mechanic

from greedylr_fused import Mechanic
from greedylr_fused.schedules.mechanic import MechanicSpec

#: S of this form for plain SGD at lr 1 on .5 sum(A x^2), A = (1, 2, .5), from x = (1, -2, 3). The problem amplifies a
#: change of 1e-15 of its start to 1e-7 by step 100, and to 5% by step 400.
GOLDEN = {1: 1e-6, 2: 1.00000000052e-6, 3: 1.34744036e-6, 10: 1.02268651e-5, 50: 0.0169567102, 100: 0.0188997813}
AT_100 = (0.0433985, 0.2310284, 1.0187746)


def test_golden_values():
    x, curvature = [1.0, -2.0, 3.0], (1.0, 2.0, 0.5)
    tuner = mechanic.Mechanic64(x)
    for step in range(1, 401):
        g = [a * xi for a, xi in zip(curvature, x, strict=True)]
        x = tuner.step(x, g, [-gi for gi in g])
        if step in GOLDEN:
            assert sum(tuner.s) == pytest.approx(GOLDEN[step], rel=1e-6 if step == 100 else 6e-9)
        if step == 100:
            assert x == pytest.approx(AT_100, abs=1e-6)
    assert sum(tuner.s) == pytest.approx(0.0212802863, rel=0.06)


@pytest.mark.parametrize("name", mechanic.LRS)
def test_optax_over_adamw(name):
    """To rounding as it grows: it is amplified a thousandfold after step 50."""
    kept, rows = json.loads(mechanic.ORACLE.read_text())["runs"][name], mechanic.run(mechanic.LRS[name])
    assert len(kept) == 9
    for step, row in kept.items():
        slack = 1e-14 if int(step) <= 50 else 1e-10
        assert rows[int(step) - 1]["s"] == pytest.approx(row["s"], rel=slack)
        assert rows[int(step) - 1]["x"] == pytest.approx(row["x"], abs=slack)


@pytest.mark.parametrize("seed", range(5))
def test_the_package_s_own_specification(seed):
    """The learners over random measurements: h of either sign, of many sizes, and zero."""
    source = random.Random(seed)
    own, apart = MechanicSpec(Mechanic()), mechanic.Mechanic64([0.0])
    for _ in range(200):
        x, g = source.gauss(0, 1) * 10 ** source.uniform(-3, 3), source.gauss(0, 1) * 10 ** source.uniform(-6, 3)
        dp = source.choice((0.0, source.gauss(0, 1)))
        apart.x0, scale = [x + dp * (sum(apart.s) + 1e-8)], sum(apart.s)
        direction = (apart.x0[0] - x) / (scale + 1e-8)
        apart.step([x], [g], [0.0])
        own.observe(abs(g), abs(x), g * direction, x * direction)
        assert own.scale == pytest.approx(sum(apart.s), rel=1e-12)
    assert own.scale != 6e-6


def test_a_product_that_is_not_finite_teaches_nothing():
    spec = MechanicSpec(Mechanic())
    spec.observe(1.0, 1.0, 0.5, 0.1)
    before = (spec.s[:], spec.m[:], spec.v[:], spec.r[:])
    for h in (math.nan, math.inf, -math.inf):
        spec.observe(1.0, 1.0, h, 0.0)
    assert (spec.s, spec.m, spec.v, spec.r) == before


def test_options():
    tuner = Mechanic(betas=[0.9, 0.99])
    assert tuner.betas == (0.9, 0.99) and hash(tuner) == hash(Mechanic(betas=(0.9, 0.99)))
    assert Mechanic().betas == pytest.approx([1 - 0.1**i for i in range(1, 7)], abs=1e-15)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tuner.eps = 1.0
    for wrong in ({"s_init": 0}, {"s_decay": -1}, {"eps": 0}, {"betas": ()}, {"betas": (1.0,)}, {"betas": (0.5,) * 17}):
        with pytest.raises(ValueError, match=f"Mechanic {next(iter(wrong))}: expected .*, got .*; "):
            Mechanic(**wrong)
    for wrong in ({"s_init": "1"}, {"betas": 0.9}, {"betas": ("0.9",)}):
        with pytest.raises(TypeError, match=f"Mechanic {next(iter(wrong))}: expected .*, got .*; "):
            Mechanic(**wrong)
