"""GreedyLR's configuration: what it refuses, and that each message names what is expected, what was got, what to do."""

import dataclasses
import math
import pickle
import re

import pytest
import torch

from greedylr_fused import FusedAdamW, GreedyLR

REFUSED = [
    ({"mode": "low"}, ValueError, "'low'", '"min" or "max"', 'mode="min"'),
    ({"threshold_mode": "percent"}, ValueError, "'percent'", '"abs" or "rel"', 'threshold_mode="abs"'),
    ({"factor": 1.0}, ValueError, "1.0", "between 0 and 1", "factor=0.95"),
    ({"factor": 0}, ValueError, "0.0", "between 0 and 1", "factor=0.95"),
    ({"factor": -0.5}, ValueError, "-0.5", "between 0 and 1", "factor=0.95"),
    ({"factor": math.nan}, ValueError, "nan", "a finite number", "leave factor out"),
    ({"factor": "half"}, TypeError, "'half'", "a number", "factor="),
    ({"factor": True}, TypeError, "True", "a number", "factor="),
    ({"threshold": -1e-6}, ValueError, "-1e-06", ">= 0", "threshold=1e-6"),
    ({"threshold": 1.0, "threshold_mode": "rel"}, ValueError, "1.0", "< 1 if relative", "threshold=1e-6"),
    ({"threshold": math.inf}, ValueError, "inf", "a finite number", "leave threshold out"),
    ({"eps": -1.0}, ValueError, "-1.0", ">= 0", "eps=1e-8"),
    ({"patience": -1}, ValueError, "-1", "a whole number from 0", "patience=0"),
    ({"patience": 2.5}, TypeError, "2.5", "an int", "write patience=2"),
    ({"window_size": 0.2}, TypeError, "0.2", "an int", "write window_size=1"),
    ({"patience": True}, TypeError, "True", "an int", "patience="),
    ({"min_lr": 2.0, "max_lr": 1.0}, ValueError, "2.0", "at most max_lr=1.0", "swap them"),
    ({"min_lr": 2.0, "max_lr": [3.0, 1.0]}, ValueError, "2.0", "at most max_lr=(3.0, 1.0)", "swap them"),
    ({"cooldown": -2}, ValueError, "-2", "a whole number from 0", "cooldown=0"),
    ({"warmup": -2}, ValueError, "-2", "a whole number from 0", "warmup=0"),
    ({"window_size": 0}, ValueError, "0", "a whole number from 1", "window_size=1"),
    ({"reset_start": -1}, ValueError, "-1", "a whole number from 0", "reset_start=0"),
    ({"patience": 2**53}, ValueError, str(2**53), str(2**53 - 1), f"patience={2**53 - 1}"),
    ({"smooth": 1}, TypeError, "1", "True or False", "smooth=True"),
    ({"min_lr": -1e-5}, ValueError, "-1e-05", "a finite learning rate >= 0", "leave min_lr out"),
    ({"max_lr": [1e-3, -1.0]}, ValueError, "-1.0", "a finite learning rate >= 0", "leave max_lr out"),
    ({"min_lr": "low"}, TypeError, "'low'", "a number", "min_lr="),
    ({"base": "cosine"}, TypeError, "'cosine'", "None or a step schedule", "base=Cosine("),
    ({"hold": -1}, ValueError, "-1", "a whole number from 0", "hold=0"),
    ({"compare": "last"}, ValueError, "'last'", '"best" or "previous"', 'compare="best"'),
    ({"forget_every": -1}, ValueError, "-1", "a whole number from 0", "forget_every=0"),
    ({"min_lr_ratio": 2.0}, ValueError, "2.0", "0 <= min_lr_ratio <= 1", "leave min_lr_ratio out"),
    ({"min_lr_ratio": 0.5, "min_lr": 1e-4}, ValueError, "0.5", "None beside min_lr", "drop one"),
    ({"max_lr_ratio": 0.5}, ValueError, "0.5", "max_lr_ratio >= 1", "leave max_lr_ratio out"),
    ({"max_lr": math.inf}, ValueError, "inf", "a finite learning rate", "leave max_lr out"),
]


@pytest.mark.parametrize(("options", "error", "got", "allowed", "remedy"), REFUSED, ids=lambda v: str(v)[:30])
def test_refused(options, error, got, allowed, remedy):
    with pytest.raises(error) as caught:
        GreedyLR(**options)
    message = str(caught.value)
    found = re.match(rf"GreedyLR {next(iter(options))}: expected (.*), got {re.escape(got)}; (.*)", message)
    assert found and remedy in found[2], message
    assert found[1].startswith(allowed) if error is TypeError else allowed in found[1], message


def test_every_option_is_checked():
    checked = {next(iter(options)) for options, *_ in REFUSED}
    assert checked == {field.name for field in dataclasses.fields(GreedyLR)}


def optimizer(config, *lrs):
    return FusedAdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], schedule=config)


@pytest.mark.parametrize(
    ("config", "lrs", "parts"),
    [
        (GreedyLR(min_lr=1e-3, smooth=False), [3e-4], ("min_lr=0.001", "got 0.0003", "group 0", "pass min_lr=")),
        (GreedyLR(max_lr=[1.0, 0.1], smooth=False), [0.5, 0.5], ("max_lr=0.1", "got 0.5", "group 1")),
        (GreedyLR(min_lr=[0.1, 0.1], smooth=False), [0.5], ("min_lr", "got 2 values", "(1)", "pass a single number")),
        (GreedyLR(max_lr=[1.0], smooth=False), [0.5, 0.5], ("max_lr", "got 1 values", "(2)", "pass a single number")),
        (GreedyLR(smooth=False), [0.0, 0.0], ("lr above 0 in at least one", "got 0 in every")),
        (GreedyLR(min_lr=1e-2, smooth=False), [1e-3], ("max_lr=0.01 (10 times it)", "got 0.001")),
    ],
    ids=str,
)
def test_refused_with_these_groups(config, lrs, parts):
    with pytest.raises(ValueError) as caught:
        optimizer(config, *lrs)
    for part in ("GreedyLR", *parts):
        assert part in str(caught.value)


def test_names_and_defaults_are_transformers():
    import inspect

    from transformers.optimization import GreedyLR as Upstream

    theirs = {name: p.default for name, p in inspect.signature(Upstream).parameters.items()}
    ours = {field.name: field.default for field in dataclasses.fields(GreedyLR)}
    added = {"base", "hold", "compare", "forget_every", "min_lr_ratio", "max_lr_ratio"}
    assert set(ours) == (set(theirs) - {"optimizer", "verbose"}) | added
    changed = {name for name in theirs.keys() & ours.keys() if ours[name] != theirs[name]}
    assert changed == {"min_lr", "max_lr", "smooth"}  # deliberate difference 3


def test_frozen_comparable_and_picklable():
    config = GreedyLR(patience=3, min_lr=[0.1, 0.2], smooth=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.patience = 4
    assert pickle.loads(pickle.dumps(config)) == config == dataclasses.replace(config)
    assert hash(config) == hash(dataclasses.replace(config)) and config != GreedyLR(smooth=False)
    assert "patience=3" in repr(config)
    with pytest.raises(TypeError):
        GreedyLR("min", smooth=False)


def test_every_option_is_documented():
    for field in dataclasses.fields(GreedyLR):
        entry = re.search(rf"^ {{8}}{field.name}: (.*?)(?=^ {{8}}\w+: |^\s*$)", GreedyLR.__doc__, re.S | re.M)
        assert entry and "Default: " in entry[1], field.name
        if field.default is not None and field.name not in ("threshold", "eps"):  # written 1e-6
            assert str(field.default) in entry[1].replace('"', ""), field.name


def test_bounds_per_group():
    config = GreedyLR(min_lr=[0.1, 0.0], max_lr=2.0, smooth=False)
    assert [config.bounds(1.0, g) for g in range(2)] == [(0.1, 2.0), (0.0, 2.0)]
    assert GreedyLR(smooth=False).bounds(3e-4, 7) == (0.1 * 3e-4, 10.0 * 3e-4)


def test_an_lr_of_zero_stays():
    opt = optimizer(GreedyLR(patience=0, smooth=False), 0.0, 1.0)
    for param in opt.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    for loss in (3.0, 2.0, 5.0):
        opt.step(loss=loss)
    assert opt.read_lr()[0] == 0.0 and opt.read_lr()[1] != 1.0
