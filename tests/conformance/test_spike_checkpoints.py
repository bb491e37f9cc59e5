"""The last losses and norms of SkipSpikes in checkpoints, copies and among other groups: as if nothing had stopped."""

import copy
import pickle
import random

import pytest
import torch
from support.tensors import assert_same, latest, parameter, snapshot

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.control import spikes_of

SMALL = SkipSpikes(rolling_interval_length=7, sigma_factor=2.0)
SCHEDULES = {"none": None, "step": Cosine(40), "loss": GreedyLR(patience=0, factor=0.8, window_size=3)}


def build(backend, device, schedule=None, config=SMALL):
    params = [parameter(torch.ones(n, device=device), torch.ones(n, device=device)) for n in (3, 70)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    return FusedAdamW(groups, lr=0.01, schedule=schedule, skip_spikes=config, backend=backend)


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def take(opt, first, last):
    """Steps whose losses and norms depend on their number alone; some of each are spikes."""
    for number in range(first, last):
        rng = random.Random(number)
        loss, size = (rng.gauss(2, 0.1) * rng.choice((1, 1, 1, 1, 3)) for _ in range(2))
        for param in params_of(opt):
            param.grad = torch.full_like(param, size)
        opt.step(loss=loss)


def rings(opt):
    return spikes_of(opt._control.vector, opt._control.spike_window)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("at", [0, 4, 7, 18])
def test_going_on_is_as_if_it_had_never_stopped(backend, device, schedule, at):
    whole, first = build(backend, device, schedule), build(backend, device, schedule)
    take(whole, 0, 30)
    take(first, 0, at)
    second = build(backend, device, schedule)
    with torch.no_grad():
        for param, value in zip(params_of(second), params_of(first), strict=True):
            param.copy_(value)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for resumed in (second, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert rings(resumed) == rings(first)
        assert latest(resumed).skipped == latest(first).skipped
        take(resumed, at, 30)
        assert_same(snapshot(resumed, control=False), snapshot(whole, control=False))
        assert rings(resumed) == rings(whole) and resumed.read_lr() == whole.read_lr()
        assert latest(resumed).skipped == latest(whole).skipped == latest(whole).skipped_spikes > 3


def test_what_a_checkpoint_has(backend, device):
    opt = build(backend, device)
    take(opt, 0, 12)
    assert "spikes" not in repr(opt).replace("skip_spikes", "") and "skip_spikes: SkipSpikes(" in repr(opt)
    for group in opt.state_dict()["param_groups"]:
        saved, known = group["spikes"], rings(opt)
        assert list(saved) == ["skipped", "spikes", "losses", "norms"] and "control" not in group
        assert [float(text) for text in saved["losses"].split()] == known["losses"] and len(known["losses"]) == 7
        assert saved["skipped"] == saved["spikes"] == latest(opt).skipped > 0
    assert "spikes" not in opt.export_state_dict()["param_groups"][0]
    torch.optim.AdamW([{"params": [p]} for p in params_of(opt)]).load_state_dict(opt.export_state_dict())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_checkpoint_without_them_begins_without_values(backend, device, schedule):
    source, opt = build(backend, device, schedule, config=None), build(backend, device, schedule)
    take(source, 0, 5)
    take(opt, 0, 12)
    opt.load_state_dict(source.state_dict())
    assert rings(opt) == {"skipped": 0.0, "spikes": 0.0, "losses": [], "norms": []}
    assert latest(opt).step == 5
    take(opt, 5, 8)
    assert len(rings(opt)["losses"]) == 3


def test_one_with_them_loads_where_spikes_are_not_skipped(backend, device):
    source, opt = build(backend, device), build(backend, device, config=None)
    take(source, 0, 12)
    opt.load_state_dict(source.state_dict())
    assert "spikes" not in opt.state_dict()["param_groups"][0]
    take(opt, 12, 14)
    assert latest(opt).skipped == 0


@pytest.mark.parametrize("size", [3, 5, 20])
def test_another_window_keeps_the_newest(backend, device, size):
    source = build(backend, device)
    other = build(backend, device, config=SkipSpikes(rolling_interval_length=size))
    take(source, 0, 12)
    other.load_state_dict(source.state_dict())
    for name in ("losses", "norms"):
        assert rings(other)[name] == rings(source)[name][-size:]
    take(other, 12, 15)
    take(source, 12, 15)
    for name in ("losses", "norms"):
        newest = min(size, 7)
        assert rings(other)[name][-newest:] == rings(source)[name][-newest:]


def test_values_stay_when_groups_join_and_leave(backend, device):
    opt = build(backend, device)
    take(opt, 0, 9)
    before = rings(opt)
    opt.add_param_group({"params": [parameter(torch.ones(4, device=device), torch.ones(4, device=device))]})
    latest(opt)  # follows the groups
    assert opt._control.n_groups == 3 and rings(opt) == before
    take(opt, 9, 10)
    assert rings(opt)["losses"][:-1] == before["losses"][1:]
    before = rings(opt)
    del opt.param_groups[0]
    latest(opt)
    assert opt._control.n_groups == 2 and rings(opt) == before


DAMAGE = {
    "no dictionary": lambda spikes: 3.0,
    "a key is missing": lambda spikes: {name: value for name, value in spikes.items() if name != "norms"},
    "no numbers": lambda spikes: spikes | {"losses": "1.0 two"},
    "no text": lambda spikes: spikes | {"losses": [1.0]},
    "not finite": lambda spikes: spikes | {"norms": "1.0 nan"},
    "no count": lambda spikes: spikes | {"skipped": 0.5},
    "more spikes than skips": lambda spikes: spikes | {"spikes": spikes["skipped"] + 1},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("of_all", [False, True])
def test_damage_is_refused_and_nothing_changes(backend, device, damage, of_all):
    opt = build(backend, device)
    take(opt, 0, 12)
    saved = copy.deepcopy(opt.state_dict())
    take(opt, 12, 14)
    before = snapshot(opt)
    for group in saved["param_groups"] if of_all else saved["param_groups"][:1]:
        group["spikes"] = DAMAGE[damage](group["spikes"])
    with pytest.raises((TypeError, ValueError)) as caught:
        opt.load_state_dict(saved)
    assert '["spikes"]' in str(caught.value) and "expected" in str(caught.value)
    assert_same(snapshot(opt), before)
