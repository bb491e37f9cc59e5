"""Refined against its golden values, and against the algorithm as its authors state it, window by window in numpy."""

import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from support.tensors import generator

from greedylr_fused.schedules import Refined, Table, refinement
from greedylr_fused.version import __version__


def filtered(norms, tau):
    """Median over each window; nearest before the start, mirrored beyond the end, padded by more than is needed."""
    width = 2 * (int(tau * len(norms)) // 2) + 1
    padded = np.pad(np.pad(norms, (0, 2 * width), mode="reflect"), width // 2, mode="edge")
    return np.array([np.median(padded[i : i + width]) for i in range(len(norms))])


def refined(norms, power, tau):
    """w_t times the sum of all later w, by its definition."""
    norms = np.asarray(norms)
    weights = filtered(norms[np.isfinite(norms)], tau) ** power
    steps = np.array([weight * math.fsum(weights[t + 1 :]) for t, weight in enumerate(weights)])
    return steps / steps.max()


def run_like(n, seed, spread=0.3):
    """Norms that fall steeply at first and then slowly, with noise and spikes."""
    torch.manual_seed(seed)
    at = torch.arange(n, dtype=torch.float64)
    norms = (8 * torch.exp(-at / (0.05 * n)) + 1.5 - at / n) * torch.exp(spread * torch.randn(n, dtype=torch.float64))
    norms[:: max(2, n // 7)] *= 30
    return norms


@pytest.mark.parametrize(
    ("norms", "optimizer", "golden"),
    [
        ([3.0] * 5, "adam", [1, 0.75, 0.5, 0.25, 0]),
        ([3.0] * 5, "sgd", [1, 0.75, 0.5, 0.25, 0]),
        ([4, 2, 1, 1, 2], "sgd", [0.125, 0.45, 1, 0.2, 0]),
        ([4, 2, 1, 1, 2], "adam", [0.5, 5 / 6, 1, 1 / 3, 0]),
    ],
)
def test_golden_values(norms, optimizer, golden):
    curve = Refined.from_norms(norms, optimizer=optimizer).curve()
    assert curve.typecode == "d"
    assert list(curve) == pytest.approx(golden, rel=4 * np.finfo(float).eps)


@pytest.mark.parametrize(("optimizer", "power"), [("adam", -1), ("sgd", -2)])
@pytest.mark.parametrize(("n", "tau"), [(2, 0.1), (3, 1.0), (19, 0.1), (20, 0.1), (160, 0.1), (161, 0.37), (40, 1.0)])
def test_as_the_authors_state_it(n, tau, optimizer, power):
    """Each weight is off by its division, its power and the median's rounding, each sum by its additions."""
    norms = run_like(n, seed=n)
    ours = Refined.from_norms(norms, optimizer=optimizer, tau=tau).values
    assert np.asarray(ours) == pytest.approx(refined(norms.numpy(), power, tau), rel=(n + 16) * np.finfo(float).eps)
    assert max(ours) == 1.0 and ours[-1] == 0.0


@pytest.mark.parametrize("levels", [2, 5, None], ids=lambda v: f"{v} values")
@pytest.mark.parametrize("width", [1, 3, 7, 41, 121])
def test_the_median_is_exact_with_ties_and_without(width, levels):
    values = torch.rand(61, generator=generator(width), dtype=torch.float64)
    values = values if levels is None else (values * levels).floor()
    padded = np.pad(np.pad(values.numpy(), (0, width // 2), mode="reflect"), (width // 2, 0), mode="edge")
    expected = [np.median(padded[i : i + width]) for i in range(61)]
    assert refinement.median_filter(values, width).tolist() == expected


def test_what_is_given_as_norms_does_not_matter():
    norms = run_like(30, seed=1).float()
    both = torch.stack([torch.linspace(1, 2, 30), norms], dim=1)
    expected = Refined.from_norms(norms)
    for given in (norms.tolist(), norms.numpy(), norms.double(), norms.requires_grad_(), both, both.tolist()):
        assert Refined.from_norms(given) == expected
    assert Refined.from_norms(both, optimizer="sgd") == Refined.from_norms(both[:, 0], optimizer="sgd") != expected


def test_norms_that_are_not_finite_are_dropped_and_their_steps_kept():
    norms = run_like(50, seed=2)
    holes = torch.cat([norms[:7], torch.tensor([math.nan, math.inf]), norms[7:]])
    assert len(Refined.from_norms(holes).values) == 52
    assert Refined.from_norms(holes, total_steps=50) == Refined.from_norms(norms)


@pytest.mark.parametrize("n_steps", [2, 3, 9, 10, 11, 57])
def test_equal_norms_are_linear_decay_at_any_length(n_steps):
    values = Refined.from_norms([0.2] * 10, total_steps=n_steps).values
    assert values == pytest.approx([1 - t / (n_steps - 1) for t in range(n_steps)], abs=4 * np.finfo(float).eps)


def test_another_length_is_interpolated_between_first_and_last_step():
    norms = run_like(40, seed=3)
    own = np.asarray(Refined.from_norms(norms).values)
    for n_steps in (13, 40, 101):
        values = np.interp(np.linspace(0, 39, n_steps), np.arange(40), own)
        found = Refined.from_norms(norms, total_steps=n_steps).values
        assert np.asarray(found) == pytest.approx(values / values.max(), abs=64 * np.finfo(float).eps)
        assert max(found) == 1.0


def test_the_shape_does_not_depend_on_the_unit_of_the_norms():
    norms = run_like(30, seed=4)
    expected = Refined.from_norms(norms, optimizer="sgd")
    for unit in (2.0**-400, 2.0**400):  # whose squares are no float64
        assert Refined.from_norms(norms * unit, optimizer="sgd") == expected


def test_tiny_norms_count_as_the_floor_of_the_median():
    norms = torch.ones(20, dtype=torch.float64)
    norms[10] = 0.0
    for floor in (1e-3, 0.25):
        at_floor = norms.clone()
        at_floor[10] = floor
        assert Refined.from_norms(norms, tau=0, floor=floor) == Refined.from_norms(at_floor, tau=0, floor=1e-12)
    assert Refined.from_norms(norms).values == Refined.from_norms([1.0] * 20).values  # which the filter takes away
    tail = [1.0] * 15 + [0.0] * 5  # collapsed for longer than the filter is wide: the peak moves to where it did
    assert Refined.from_norms(tail).values.index(1.0) == 15


def test_the_warm_up_counts_among_the_steps():
    norms = run_like(30, seed=5)
    schedule = Refined.from_norms(norms, total_steps=25, warmup_steps=5, min_lr_ratio=0.1)
    values = Refined.from_norms(norms, total_steps=20).values
    assert isinstance(schedule, Table) and schedule.values == values
    assert schedule.curve() == Table(values, warmup_steps=5, min_lr_ratio=0.1).curve()
    assert len(schedule.curve()) == 25


REFUSED = [
    ({"optimizer": "lion"}, ValueError, "'lion'", '"adam"'),
    ({"norms": "norms"}, TypeError, "not numbers", "one L1 norm per step"),
    ({"norms": [[1.0, 2.0, 3.0]]}, ValueError, "(1, 3)", "[steps, 2]"),
    ({"norms": [1.0, -2.0]}, ValueError, "-2.0 at step 1", ">= 0"),
    ({"norms": [1.0, math.nan]}, ValueError, "1 of 2", "2 or more"),
    ({"norms": [0.0] * 5}, ValueError, "0", "with gradients"),
    ({"total_steps": 1}, ValueError, "1", "from 2"),
    ({"total_steps": 10.0}, TypeError, "10.0", "an int"),
    ({"tau": 1.5}, ValueError, "1.5", "[0, 1]"),
    ({"floor": 0.0}, ValueError, "0.0", "(0, 1]"),
    ({"warmup_steps": 4}, ValueError, "4", "less 2"),
    ({"warmup_steps": -1}, ValueError, "-1", "from 0"),
    ({"min_lr_ratio": 2.0}, ValueError, "2.0", "<= 1"),
]


@pytest.mark.parametrize(("options", "error", "got", "allowed"), REFUSED, ids=lambda v: str(v)[:25])
def test_refused(options, error, got, allowed):
    options = {"norms": [1.0] * 5} | options
    with pytest.raises(error) as caught:
        Refined.from_norms(options.pop("norms"), **options)
    found = re.search("expected (.*), got (.*)", str(caught.value))
    assert allowed in found[1] and got in found[2]


def test_a_file_keeps_all_bits_and_says_where_they_come_from(tmp_path):
    path = tmp_path / "refined.json"
    schedule = Refined.from_norms(run_like(30, seed=6), tau=0.2, warmup_steps=3, source="a run")
    schedule.save(path)
    loaded = Refined.load(path)
    assert loaded == schedule == pickle.loads(pickle.dumps(schedule)) and hash(loaded) == hash(schedule)
    assert loaded.curve() == schedule.curve()
    assert loaded.provenance == {
        **{"optimizer": "adam", "tau": 0.2, "floor": 1e-3, "norms": 30, "source": "a run"},
        "version": f"greedylr_fused {__version__}",
    }
    loaded.save(path)
    assert Refined.load(path).provenance == loaded.provenance


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda kept: [kept], '"schedule": "Refined"'),
        (lambda kept: kept | {"schedule": "Linear"}, '"schedule": "Refined"'),
        (lambda kept: kept | {"values": [1.0, "x"]}, "values[1]"),
        (lambda kept: kept | {"values": [1.0, -1.0]}, "values[1]"),
        (lambda kept: kept | {"values": 3}, '"values"'),
        (lambda kept: kept | {"values": []}, "0 values"),
        (lambda kept: kept | {"warmup_steps": 0.5}, "warmup_steps"),
        (lambda kept: kept | {"min_lr_ratio": -0.5}, "min_lr_ratio"),
        (lambda kept: kept | {"provenance": None}, '"provenance"'),
        (lambda kept: {"schedule": "Refined"}, "missing: min_lr_ratio, provenance, values, warmup_steps"),
        (lambda kept: kept | {"power": 1}, "too many or missing: power"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, says):
    path = tmp_path / "refined.json"
    Refined.from_norms([2.0, 1.0, 1.0]).save(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError) as caught:
        Refined.load(path)
    for part in (str(path), says, "make it anew"):
        assert part in str(caught.value)
    path.write_text("{")
    with pytest.raises(ValueError, match="make it anew"):
        Refined.load(path)
