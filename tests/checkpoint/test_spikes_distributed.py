"""SkipSpikes and torch.distributed.checkpoint: its step that creates state has no loss, and its files keep rings."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.foreign_warnings import SINGLE_PROCESS, TYPED_STORAGE
from support.tensors import assert_same, snapshot
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.control import spikes_of

SCHEDULES = {"none": None, "step": Cosine(40), "loss": GreedyLR(patience=0, factor=0.5, window_size=3)}
SMALL = SkipSpikes(rolling_interval_length=4, sigma_factor=1.0)


def build(schedule, seed=0, config=SMALL):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[1].parameters()), "weight_decay": 0.3}]
    return model, FusedAdamW(groups, lr=0.01, schedule=schedule, skip_spikes=config)


def train(model, opt, steps):
    for i in range(steps):
        opt.zero_grad()
        loss = model(torch.full((3, 4), 1.0 + i)).square().mean()
        loss.backward()
        opt.step(loss=loss)


def rings(opt):
    return spikes_of(opt._control.vector, opt._control.spike_window)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_materialisation_leaves_everything_untouched(schedule):
    model, opt = build(schedule)
    before = snapshot(opt)
    get_optimizer_state_dict(model, opt)
    after = snapshot(opt)
    assert_same({name: after[name] for name in before}, before)
    assert len(opt.state) == 4 and all((value == 0).all() for state in opt.state.values() for value in state.values())
    train(model, opt, 6)
    fresh_model, fresh = build(schedule)
    train(fresh_model, fresh, 6)
    assert_same(snapshot(opt), snapshot(fresh))
    assert opt.metrics().skipped_spikes > 0
    with pytest.raises(RuntimeError, match="expected a loss, from which"):
        opt.step()


@pytest.mark.parametrize("full, flatten", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_round_trip(full, flatten, schedule):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten, full_state_dict=full)
    model, opt = build(schedule)
    train(model, opt, 6)
    saved = get_optimizer_state_dict(model, opt, options=options)
    twin_model, twin = build(schedule, seed=1)
    twin_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(twin_model, twin, saved, options=options)
    assert rings(twin) == rings(opt) and rings(opt)["spikes"] > 0
    train(model, opt, 3)
    train(twin_model, twin, 3)
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    assert rings(twin) == rings(opt) and twin.read_lr() == opt.read_lr()


@SINGLE_PROCESS
@TYPED_STORAGE
def test_through_a_file(tmp_path):
    model, opt = build(None)
    train(model, opt, 6)
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    twin_model, twin = build(None, seed=1)
    model_state, opt_state = get_state_dict(twin_model, twin)
    state = {"model": model_state, "opt": opt_state}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(twin_model, twin, model_state_dict=state["model"], optim_state_dict=state["opt"])
    assert rings(twin) == rings(opt) and rings(opt)["spikes"] > 0


@SINGLE_PROCESS
@TYPED_STORAGE
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_file_from_before_begins_without_values(schedule, tmp_path):
    """As docs/numerics.md says: torch compares keys."""
    model, opt = build(schedule, config=None)
    train(model, opt, 6)
    dcp.save({"opt": get_optimizer_state_dict(model, opt)}, checkpoint_id=tmp_path, no_dist=True)
    twin_model, twin = build(schedule, seed=1)
    twin_model.load_state_dict(model.state_dict())
    found = {"opt": get_optimizer_state_dict(twin_model, twin)}
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True, planner=planner)
    set_optimizer_state_dict(twin_model, twin, found["opt"])
    assert rings(twin) == {"skipped": 0.0, "spikes": 0.0, "losses": [], "norms": []}
    assert twin.read_lr() == opt.read_lr() and twin.metrics().step == 6
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
