"""Damaged and foreign checkpoints: an error that names the key, and an optimizer that goes on as if nothing was."""

import copy
import math
import pickle

import pytest
import torch
from support.tensors import assert_same
from support.twins import Twins

from greedylr_fused.control.slots import SAVED


@pytest.fixture
def twins():
    return Twins("auto", torch.device("cpu"))


def put(*path_and_value):
    *path, last, value = path_and_value

    def harm(saved):
        for key in path:
            saved = saved[key]
        saved[last] = value

    return harm


def drop(*path):
    *path, last = path

    def harm(saved):
        for key in path:
            saved = saved[key]
        del saved[last]

    return harm


def both(harm, *others):
    return lambda saved: [one(saved) for one in (harm, *others)]


def control(name, value):
    """The same damage in every group, as groups share these numbers."""
    return both(*(put("param_groups", i, "control", name, value) for i in range(2)))


def window(saved, i, value):
    for group in saved["param_groups"]:
        losses = list(map(float, group["control"]["window"].split()))
        group["control"]["window"] = [*losses[:i], value, *losses[i + 1 :]]


def swap(saved):
    saved["param_groups"].reverse()


NAN, INF = math.nan, math.inf
F32 = torch.float32
DAMAGE = {
    "no groups": (drop("param_groups"), ValueError, r"dictionary with the keys \['state'\]"),
    "no state": (drop("state"), ValueError, r"keys \['param_groups'\]"),
    "state is a list": (put("state", []), TypeError, "state: expected a dictionary, got"),
    "groups are a number": (put("param_groups", 3), TypeError, "param_groups: expected .*, got 3"),
    "a group is None": (put("param_groups", 1, None), TypeError, "param_groups: expected"),
    "fewer groups": (lambda s: s["param_groups"].pop(), ValueError, "expected the 2 parameter groups .*got 1"),
    "fewer parameters": (
        lambda s: s["param_groups"][1]["params"].pop(),
        ValueError,
        r'\[1\]\["params"\]: expected the 2 parameters .*, got 1',
    ),
    "more parameters": (
        put("param_groups", 0, "params", [0, 7]),
        ValueError,
        r'\[0\]\["params"\]: expected the 1 parameters .*, got 2',
    ),
    "other parameters": (put("param_groups", 1, "params", "ab"), TypeError, r'param_groups\[1\]\["params"\]'),
    "a parameter twice": (
        put("param_groups", 1, "params", [0, 2]),
        ValueError,
        "expected each parameter once, got 0 in two places",
    ),
    "a list for a parameter": (put("param_groups", 1, "params", [[1], 2]), TypeError, 'entry of "params"'),
    "groups swapped": (swap, ValueError, r'param_groups\[0\]\["params"\]: expected the 1 .*, got 2'),
    "no betas": (drop("param_groups", 1, "betas"), ValueError, r'param_groups\[1\]: expected .*without "betas"'),
    "lr nan": (put("param_groups", 1, "lr", NAN), ValueError, "lr of parameter group 1: expected .*, got nan"),
    "lr text": (
        put("param_groups", 1, "lr", "fast"),
        TypeError,
        r'param_groups\[1\]\["lr"\]: expected .*, got \'fast\'',
    ),
    "lr negative": (put("param_groups", 0, "lr", -1.0), ValueError, "lr of parameter group 0: expected .*, got -1.0"),
    "lr out of bounds": (put("param_groups", 0, "lr", 7.0), ValueError, "group 0: expected .*, got 7.0"),
    "lr two elements": (put("param_groups", 0, "lr", torch.ones(2)), TypeError, r'param_groups\[0\]\["lr"\]'),
    "eps huge": (
        put("param_groups", 0, "eps", 10**400),
        ValueError,
        r'\["eps"\]: expected .* a float can hold, got 1000',
    ),
    "betas": (put("param_groups", 1, "betas", (0.9, 1.5)), ValueError, r"param_groups\[1\]: betas .*1.5"),
    "betas text": (put("param_groups", 1, "betas", "ab"), ValueError, r"param_groups\[1\]: betas"),
    "betas none": (put("param_groups", 1, "betas", (None, 0.9)), ValueError, r"param_groups\[1\]: betas"),
    "weight decay": (put("param_groups", 1, "weight_decay", INF), ValueError, "weight_decay of parameter group 1"),
    "amsgrad": (put("param_groups", 1, "amsgrad", "yes"), TypeError, r'\["amsgrad"\]: expected True .*, got \'yes\''),
    "maximize": (put("param_groups", 0, "maximize", 2), TypeError, r'\["maximize"\]: expected .*, got 2'),
    "a state is a tensor": (put("state", 1, torch.ones(3)), TypeError, r"state\[1\]: expected .*, got tensor"),
    "no moment": (drop("state", 2, "exp_avg_sq"), ValueError, r'state\[2\]: expected .*without "exp_avg_sq"'),
    "no maximum": (drop("state", 0, "max_exp_avg_sq"), ValueError, r'state\[0\]: .*without "max_exp_avg_sq"'),
    "another kind": (control("kind", 7.0), ValueError, r'\["kind"\]: expected 0 or 1 .*, got 7.0'),
    "no step": (drop("state", 0, "step"), ValueError, r'state\[0\]: expected .*without "step"'),
    "another optimizer": (
        put("state", 0, {"momentum_buffer": torch.ones(5)}),
        ValueError,
        "expected a state of AdamW, got .*momentum_buffer",
    ),
    "shape": (put("state", 0, "exp_avg", torch.ones(4)), ValueError, r'"exp_avg"\]: expected shape \(5,\) .*got \(4,'),
    "scalar": (
        put("state", 0, "exp_avg", torch.tensor(1.0)),
        ValueError,
        r'state\[0\]\["exp_avg"\]: expected shape .*, got \(\)',
    ),
    "integers": (put("state", 0, "exp_avg", torch.ones(5, dtype=torch.int32)), TypeError, "torch.int32"),
    "bools": (put("state", 0, "max_exp_avg_sq", torch.ones(5, dtype=torch.bool)), TypeError, "torch.bool"),
    "complex": (put("state", 0, "exp_avg_sq", torch.ones(5, dtype=torch.complex64)), TypeError, "torch.complex64"),
    "float8": (put("state", 0, "exp_avg", torch.ones(5).to(torch.float8_e5m2)), TypeError, "float8_e5m2"),
    "sparse": (put("state", 0, "exp_avg", torch.ones(5).to_sparse()), TypeError, "torch.sparse_coo"),
    "no memory": (put("state", 0, "exp_avg", torch.ones(5, device="meta")), TypeError, "on meta"),
    "moment is a list": (
        put("state", 0, "exp_avg", [1.0] * 5),
        TypeError,
        r'state\[0\]\["exp_avg"\]: expected a tensor, got \[1.0',
    ),
    "steps": (put("state", 1, "step", torch.ones(2)), ValueError, r'state\[1\]\["step"\].*one number'),
    "step nan": (
        put("state", 1, "step", torch.tensor(NAN)),
        ValueError,
        r'state\[1\]\["step"\]: expected a whole number.*, got nan',
    ),
    "step negative": (put("state", 1, "step", -3), ValueError, r'state\[1\]\["step"\]: expected .*, got -3'),
    "step fractional": (put("state", 1, "step", torch.tensor(2.5)), ValueError, r'\["step"\]: expected .*, got 2.5'),
    "step complex": (put("state", 1, "step", torch.tensor(2j)), ValueError, r'\["step"\]: expected .*, got tensor'),
    "step none": (put("state", 1, "step", None), TypeError, r'\["step"\]: expected .*, got None'),
    "one control": (drop("param_groups", 1, "control"), ValueError, r'\[1\]\["control"\]: expected .*got no "kind"'),
    "control text": (
        put("param_groups", 0, "control", "x"),
        TypeError,
        r'\[0\]\["control"\]: expected a dictionary, got \'x\'',
    ),
    "no best": (
        drop("param_groups", 1, "control", "best"),
        ValueError,
        r'\[1\]\["control"\]: expected .*got no "best"',
    ),
    "differ": (
        put("param_groups", 1, "control", "bad", 1.0),
        ValueError,
        r'\[1\]\["control"\]\["bad"\]: expected .*group 0.*, got 1.0',
    ),
    "own lr": (control("lr", NAN), ValueError, r'\["control"\]\["lr"\]: expected .*, got nan'),
    "initial lr": (control("initial_lr", -0.1), ValueError, r'\["initial_lr"\]: expected .*, got -0.1'),
    "initial lr 0": (control("initial_lr", 0.0), ValueError, "GreedyLR: expected a starting lr above 0.*, got 0"),
    "best nan": (control("best", NAN), ValueError, r'\["best"\]: expected a finite number, or inf .*, got nan'),
    "best -inf": (control("best", -INF), ValueError, r'\["best"\]: expected .*, got -inf'),
    "good fractional": (control("good", 0.5), ValueError, r'\["good"\]: expected a whole number .*, got 0.5'),
    "bad huge": (control("bad", 1e300), ValueError, r'\["bad"\]: expected .*, got 1e\+300'),
    "cooldown nan": (control("cooldown_left", NAN), ValueError, r'\["cooldown_left"\]: expected .*, got nan'),
    "warmup inf": (control("warmup_left", INF), ValueError, r'\["warmup_left"\]: expected .*, got inf'),
    "resets": (control("resets_left", -1), ValueError, r'\["resets_left"\]: expected .*, got -1'),
    "step text": (control("step", "4"), TypeError, r'\["control"\]\["step"\]: expected .*, got \'4\''),
    "skipped bool": (control("skipped", True), TypeError, r'\["skipped"\]: expected .*, got True'),
    "loss none": (control("loss", None), TypeError, r'\["loss"\]: expected .*, got None'),
    "loss": (control("loss", 9.0), ValueError, r'\["window"\]\[3\]: expected the last "loss", 9.0, got 2.1'),
    "mode": (control("mode_max", 0.5), ValueError, r'\["mode_max"\]: expected 0 or 1, got 0.5'),
    "other mode": (both(control("mode_max", 1.0)), ValueError, 'expected mode="min".* written with mode="max"'),
    "sum": (control("window_sum", 10.0), ValueError, r'\["window_sum"\]: expected "smoothed" times .*, got 10.0'),
    "sum nan": (control("window_sum", NAN), ValueError, r'\["window_sum"\]: expected a finite number, got nan'),
    "window nan": (lambda s: window(s, 2, NAN), ValueError, r'\["window"\]\[2\]: expected a finite number, got nan'),
    "window text": (lambda s: window(s, 2, "1"), TypeError, r'\["window"\]\[2\]: expected .*, got \'1\''),
    "window short": (control("window", [2.7, 2.1]), ValueError, r'\["window_sum"\]'),
    "window number": (control("window", 3.0), TypeError, r'\["window"\]: expected a text or list .*, got 3.0'),
    "window words": (
        control("window", "2.7 x"),
        ValueError,
        r'\["window"\]: expected a text of numbers .*, got \'2.7 x\'',
    ),
    "a later version": (control("version", 2), ValueError, r'\["version"\]: expected at most 1, got 2; update'),
    "a version that is none": (
        control("version", "new"),
        ValueError,
        r'\["version"\]: expected at most 1, got \'new\'',
    ),
    "an event that is none": (control("event", 7.0), ValueError, r'\["event"\]: expected 0 or 1 or 2 or 3.*, got 7.0'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_checkpoint_is_refused_and_changes_nothing(twins, damage):
    harm, error, message = DAMAGE[damage]
    harm(twins.saved)
    twins.refuse(twins.saved, error, f"^checkpoint: .*{message}")


@pytest.mark.parametrize("what", [None, [], "checkpoint.pt", 3, torch.ones(2)], ids=lambda what: type(what).__name__)
def test_what_is_no_dictionary_is_refused(twins, what):
    twins.refuse(what, TypeError, r"checkpoint: expected the dictionary of state_dict\(\), got a ")


def test_every_number_of_the_schedule_is_missed(twins):
    """A key at a time, so that none is filled in silently."""
    names = {"curve_value": "fraction"}  # the key that it has kept
    for name in (names.get(slot, slot) for slot in (*SAVED, "lr", "initial_lr", "window")):
        saved = copy.deepcopy(twins.saved)
        del saved["param_groups"][1]["control"][name]
        twins.refuse(saved, ValueError, rf'param_groups\[1\]\["control"\]: expected .*, got no "{name}"')


def test_a_refused_checkpoint_is_left_as_it_was(twins):
    twins.saved["param_groups"][0]["lr"] = 7.0
    kept = copy.deepcopy(twins.saved)
    twins.refuse(twins.saved, ValueError, "7.0")
    assert twins.saved["param_groups"] == kept["param_groups"] and twins.saved["state"].keys() == kept["state"].keys()
    for index, state in kept["state"].items():
        assert_same(twins.saved["state"][index], state)


def test_a_truncated_file(twins, tmp_path):
    """PyTorch's reader refuses it, before the optimizer sees anything."""
    whole = tmp_path / "whole.pt"
    torch.save(twins.saved, whole)
    data = whole.read_bytes()
    for part in (0, 1, len(data) // 2, len(data) - 1):
        (tmp_path / "part.pt").write_bytes(data[:part])
        with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
            twins.opt.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    twins.check()
