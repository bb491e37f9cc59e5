"""What the step schedules refuse, and that they are data: frozen, compared and hashed by value, pickled, documented."""

import dataclasses
import math
import pickle
import re
from array import array

import numpy as np
import pytest
import torch

from greedylr_fused import FusedAdamW
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
    StepSchedule,
    Table,
)

EXAMPLES = [
    Constant(warmup_steps=3),
    Linear(10, warmup_steps=3, min_lr_ratio=0.1),
    Polynomial(10, power=2),
    Cosine(10, num_cycles=1),
    CosineRestarts(10, num_cycles=3),
    CosineRestarts(10, first_steps=2, mult=2),
    REX(10, d=0),
    UBA(10, phi=1),
    WSD(10, decay_steps=4, warmup_type="cosine"),
    WSD(decay_type="1-sqrt"),
    OneCycle(10, three_phase=True),
    Table([1, 0.5]),
]
CLASSES = {type(schedule) for schedule in EXAMPLES}

REFUSED = [
    (Constant, (), {"warmup_steps": -1}, ValueError, "-1", "a whole number from 0 to 33554432", "warmup_steps=0"),
    (Constant, (), {"warmup_steps": 2.5}, TypeError, "2.5", "an int", "warmup_steps=2"),
    (Linear, (0,), {}, ValueError, "0", "a whole number from 1 to 33554432", "write total_steps=1"),
    (Linear, (2**25 + 1,), {}, ValueError, "33554433", "from 1 to 33554432", "write total_steps=33554432"),
    (Linear, (1e3,), {}, TypeError, "1000.0", "an int", "write total_steps=1000"),
    (Linear, (np.int64(1000),), {}, TypeError, "np.int64(1000)", "an int", "write total_steps=1000"),
    (Linear, (math.nan,), {}, TypeError, "nan", "an int", "write total_steps=1"),
    (Linear, (True,), {}, TypeError, "True", "an int", "write total_steps=1"),
    (Linear, (9,), {"warmup_steps": 10}, ValueError, "10", "at most total_steps=9", "shorten the warm-up"),
    (Linear, (9,), {"warmup_steps": "1"}, TypeError, "'1'", "an int", "warmup_steps=0"),
    (Linear, (9,), {"min_lr_ratio": -0.1}, ValueError, "-0.1", "0 <= min_lr_ratio <= 1", "divide the floor"),
    (Linear, (9,), {"min_lr_ratio": 1.1}, ValueError, "1.1", "0 <= min_lr_ratio <= 1", "divide the floor"),
    (Linear, (9,), {"min_lr_ratio": math.nan}, ValueError, "nan", "a finite number", "leave min_lr_ratio out"),
    (Linear, (9,), {"min_lr_ratio": None}, TypeError, "None", "a number (0 <= min_lr_ratio", "min_lr_ratio=0.1"),
    (Polynomial, (9,), {"power": 0}, ValueError, "0.0", "> 0", "use Constant"),
    (Polynomial, (9,), {"power": "2"}, TypeError, "'2'", "a number (> 0)", "write power=1"),
    (Cosine, (9,), {"num_cycles": 0}, ValueError, "0.0", "0 < num_cycles <= 33554432", "num_cycles=0.5"),
    (Cosine, (9,), {"num_cycles": 1e308}, ValueError, "1e+308", "0 < num_cycles <= 33554432", "num_cycles=0.5"),
    (CosineRestarts, (9,), {"num_cycles": 0}, ValueError, "0", "a whole number from 1", "write num_cycles=1"),
    (CosineRestarts, (9,), {"num_cycles": 0.5}, TypeError, "0.5", "an int", "write num_cycles=1"),
    (CosineRestarts, (9,), {"first_steps": 0}, ValueError, "0", "a whole number from 1", "write first_steps=1"),
    (CosineRestarts, (9,), {"mult": 0, "first_steps": 2}, ValueError, "0", "a whole number from 1", "write mult=1"),
    (CosineRestarts, (9,), {"mult": 2}, ValueError, "2", "1 without first_steps", "write first_steps="),
    (CosineRestarts, (9,), {"num_cycles": 2, "first_steps": 2}, ValueError, "2", "no num_cycles beside", "leave one"),
    (REX, (9,), {"d": 1}, ValueError, "1.0", "0 <= d < 1", "write d=0.5"),
    (REX, (9,), {"d": -0.1}, ValueError, "-0.1", "0 <= d < 1", "d=0 for a straight line"),
    (UBA, (9,), {"phi": 0}, ValueError, "0.0", "> 0", "phi=2.0 for a cosine"),
    (UBA, (9,), {"phi": math.inf}, ValueError, "inf", "a finite number (> 0)", "write phi=2"),
    (
        WSD,
        (9,),
        {"decay_steps": None},
        ValueError,
        "None",
        "a number of steps where there is",
        "decay_steps=1, a tenth",
    ),
    (WSD, (9,), {"decay_steps": 0}, ValueError, "0", "a whole number from 1", "write decay_steps=1"),
    (WSD, (9,), {"decay_steps": 5, "warmup_steps": 5}, ValueError, "5", "at most total_steps=9 less", "shorten"),
    (WSD, (), {"decay_steps": 5}, ValueError, "5", "None without total_steps", "opt.start_decay(steps)"),
    (WSD, (1.5,), {}, TypeError, "1.5", "an int", "write total_steps=2"),
    (WSD, (0,), {}, ValueError, "0", "a whole number from 1", "write total_steps=1"),
    (WSD, (), {"warmup_steps": -1}, ValueError, "-1", "a whole number from 0", "warmup_steps=0"),
    (WSD, (), {"min_lr_ratio": 3}, ValueError, "3.0", "0 <= min_lr_ratio <= 1", "divide the floor"),
    (WSD, (), {"warmup_type": "log"}, ValueError, "'log'", '"linear" or "cosine" or "1-sqrt"', '"linear"'),
    (WSD, (), {"decay_type": "sqrt"}, ValueError, "'sqrt'", '"linear" or "cosine" or "1-sqrt"', '"linear"'),
    (WSD, (), {"decay_type": ["cosine"]}, ValueError, "['cosine']", '"linear" or "cosine" or "1-sqrt"', '"linear"'),
    (WSD, (), {"num_cycles": -1}, ValueError, "-1.0", "0 < num_cycles <= 33554432", "num_cycles=0.5"),
    (OneCycle, (0,), {}, ValueError, "0", "a whole number from 1", "write total_steps=1"),
    (OneCycle, (9,), {"pct_start": 1.1}, ValueError, "1.1", "0 <= pct_start <= 1", "write pct_start=0.3"),
    (OneCycle, (9,), {"pct_start": 0.6, "three_phase": True}, ValueError, "0.6", "<= 0.5 with three_phase", "0.3"),
    (OneCycle, (9,), {"anneal_strategy": "cosine"}, ValueError, "'cosine'", '"cos" or "linear"', '"cos"'),
    (OneCycle, (9,), {"div_factor": 0.5}, ValueError, "0.5", ">= 1", "write div_factor=25.0"),
    (OneCycle, (9,), {"final_div_factor": 0.03}, ValueError, "0.03", "1 / div_factor, 0.04", "a larger one"),
    (OneCycle, (9,), {"three_phase": 1}, TypeError, "1", "True or False", "three_phase=True"),
    (Table, ([],), {}, ValueError, "'0 values'", "1 to 33554432 values", "pass a list of numbers"),
    (Table, ([1.0, -0.5],), {}, ValueError, "-0.5", "a finite number >= 0", "ratios of the peak"),
    (Table, ([1.0, math.nan],), {}, ValueError, "nan", "a finite number >= 0", "ratios of the peak"),
    (Table, (torch.tensor([math.inf]),), {}, ValueError, "inf", "a finite number >= 0", "ratios of the peak"),
    (Table, ([1.0, "0"],), {}, TypeError, "'0'", "numbers in one dimension", "pass a list of numbers"),
    (Table, ([True],), {}, TypeError, "True", "numbers in one dimension", "pass a list of numbers"),
    (Table, (torch.ones(2, 2),), {}, TypeError, "[1.0, 1.0]", "numbers in one dimension", "a 1-D tensor"),
    (Table, (torch.tensor(1.0),), {}, TypeError, "<class 'torch.Tensor'>", "numbers in one dimension", "a 1-D tensor"),
    (Table, ("123",), {}, TypeError, "<class 'str'>", "numbers in one dimension", "a 1-D tensor"),
    (Table, ({1.0, 0.5},), {}, TypeError, "<class 'set'>", "numbers in one dimension", "a 1-D tensor"),
    (Table, ([1.0],), {"warmup_steps": -1}, ValueError, "-1", "a whole number from 0", "warmup_steps=0"),
    (Table, ([1.0],), {"min_lr_ratio": 2}, ValueError, "2.0", "0 <= min_lr_ratio <= 1", "divide the floor"),
]


@pytest.mark.parametrize(("kind", "args", "options", "error", "got", "allowed", "remedy"), REFUSED, ids=str)
def test_refused(kind, args, options, error, got, allowed, remedy):
    with pytest.raises(error) as caught:
        kind(*args, **options)
    name = [*options, dataclasses.fields(kind)[0].name][0]
    message = str(caught.value)
    found = re.match(rf"{kind.__name__} {name}(?:\[\d+\])?: expected (.*), got {re.escape(got)}; (.*)", message, re.S)
    assert found and allowed in found[1] and remedy in found[2], message


def test_every_option_is_checked():
    checked = {(kind, [*options, dataclasses.fields(kind)[0].name][0]) for kind, _, options, *_ in REFUSED}
    inherited = {"total_steps", "warmup_steps", "min_lr_ratio"}  # checked in one place for all, by Linear's cases
    for kind in CLASSES:
        for field in dataclasses.fields(kind):
            assert (kind, field.name) in checked or (field.name in inherited and (Linear, field.name) in checked)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda schedule: type(schedule).__name__)
def test_frozen_comparable_and_picklable(schedule):
    assert isinstance(schedule, StepSchedule)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule == dataclasses.replace(schedule) and hash(copy) == hash(schedule)
    assert copy.curve() == schedule.curve() and schedule.curve().typecode == "d"
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.warmup_steps = 4
    assert eval(repr(schedule), {kind.__name__: kind for kind in CLASSES}) == schedule


@pytest.mark.parametrize("kind", sorted(CLASSES, key=str), ids=lambda kind: kind.__name__)
def test_every_option_is_documented(kind):
    for field in dataclasses.fields(kind):
        entry = re.search(rf"^ {{8}}{field.name}: (.*?)(?=^ {{8}}\w+: |^\s*$)", kind.__doc__, re.S | re.M)
        assert entry, field.name
        if field.default is not dataclasses.MISSING:
            assert f"Default: {field.default}" in re.sub(r"\s+", " ", entry[1]).replace('"', ""), field.name
    assert "Raises:" in kind.__doc__


def test_options_have_names():
    """All but the length, or the values, which come first."""
    for kind in CLASSES:
        fields = dataclasses.fields(kind)
        assert [field.name for field in fields if not field.kw_only] == [fields[0].name] * (kind is not Constant)


def test_the_length_of_a_decay_is_checked():
    for steps, error in ((0, ValueError), (2**25 + 1, ValueError), (1.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match=rf"WSD steps: expected .*, got {steps}; write "):
            WSD().decay(steps)


def test_numbers_are_kept_as_floats():
    """So that schedules that are equal have the same bits, and say the same."""
    schedule = Polynomial(10, power=2, min_lr_ratio=0)
    assert schedule == Polynomial(10, power=2.0) and repr(schedule) == repr(Polynomial(10, power=2.0))


def test_a_schedule_of_several_types_of_values():
    values = [1.0, 0.25, 0.0]
    kinds = (tuple, torch.tensor, np.array, lambda v: array("d", v), lambda v: list(map(np.float32, v)))
    for kind in kinds:
        table = Table(kind(values))
        assert table.values == (1.0, 0.25, 0.0) and {type(value) for value in table.values} == {float}
        assert table == Table(values) and hash(table) == hash(Table(values))
    assert Table(torch.tensor(values, dtype=torch.bfloat16, requires_grad=True)) == Table(values)
    assert list(Table(range(3)).curve()) == [0.0, 1.0, 2.0]


def test_a_table_with_warm_up_and_floor():
    assert list(Table([0.3, 1.7]).curve()) == [0.3, 1.7]
    assert list(Table([1.0, 0.5, 0.0], warmup_steps=2, min_lr_ratio=0.5).curve()) == [0.0, 0.5, 1.0, 0.75, 0.5]


def test_a_long_table_is_shown_in_short():
    shown = repr(Table([1.0, *[0.5] * 10**5, 0.25]))
    assert shown == ("Table([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, ... 0.25: 100002 values], warmup_steps=0, min_lr_ratio=0.0)")


@pytest.mark.parametrize(
    ("curve", "error", "message"),
    [
        ([1.0], TypeError, r'Own.curve\(\): expected a filled array\("d", ...\), got \[1.0\]'),
        (array("f", [1.0, 0.5]), TypeError, "array\\('f'"),
        (array("d"), TypeError, "array\\('d'\\)"),
        (
            array("d", [1.0, math.nan]),
            ValueError,
            r"Own.curve\(\): expected a finite number >= 0 for step 1, got nan",
        ),
        (array("d", [-0.5]), ValueError, "expected .* for step 0, got -0.5"),
    ],
    ids=str,
)
def test_a_curve_written_elsewhere_is_checked(curve, error, message):
    """A float32 one would be read as float64, two values at a time."""

    class Own(StepSchedule):
        def curve(self):
            return curve

    with pytest.raises(error, match=message):
        FusedAdamW([torch.nn.Parameter(torch.zeros(1))], schedule=Own())


def test_a_table_of_learning_rates_is_told_from_one_of_ratios():
    with pytest.warns(UserWarning, match="largest value is 0.0003; values are ratios of the optimizer's lr"):
        Table([3e-4, 2e-4])


def test_a_share_of_the_steps_is_told_from_their_number():
    with pytest.raises(TypeError, match=r"write warmup_steps=int\(0.1 \* total\), which counts steps"):
        Cosine(100, warmup_steps=0.1)


@pytest.mark.parametrize("schedule", [Cosine(10), WSD()], ids=str)
def test_a_peak_of_zero_is_refused(schedule):
    with pytest.raises(
        ValueError, match="expected a starting lr above 0 in at least one parameter group.*, got 0 in every"
    ):
        FusedAdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.0, schedule=schedule)
