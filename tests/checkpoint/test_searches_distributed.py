"""A level search and torch.distributed.checkpoint: its step that creates state is none; its files have any phase."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.foreign_warnings import SINGLE_PROCESS, TYPED_STORAGE
from support.tensors import assert_same, latest, snapshot
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from greedylr_fused import Climb, FusedAdamW, Linear

SEARCH = Climb(base=Linear(120, warmup_steps=4), min_window=6, window=0.0)
#: A number of steps after which it is in that phase.
PHASES = {"wait": 2, "trial": 7, "control": 13, "frozen": 60}


def build(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[1].parameters()), "weight_decay": 0.3}]
    return model, FusedAdamW(groups, lr=0.01, schedule=SEARCH)


def train(model, opt, steps):
    for i in steps:
        opt.zero_grad()
        loss = (model(torch.full((3, 4), 1.0 + 0.1 * i)) - 3.0).square().mean()
        loss.backward()
        opt.step(loss=loss)


def goes_on(phase, found, twin):
    """The twin goes on as the original; within a trial, as a copy of it."""
    (model, opt), (twin_model, own) = found, twin
    if phase == "trial":
        model, opt = build()
        opt.load_state_dict(found[1].state_dict())
        model.load_state_dict(found[0].state_dict())
    assert repr(own._control.numbers()) == repr(opt._control.numbers())
    for each in ((model, opt), (twin_model, own)):
        train(*each, range(PHASES[phase], PHASES[phase] + 14))
    assert_same(snapshot(own, control=False), snapshot(opt, control=False))
    assert own.read_lr() == opt.read_lr() and latest(own) == latest(opt)


def test_materialisation_leaves_everything_untouched():
    model, opt = build()
    before = snapshot(opt)
    get_optimizer_state_dict(model, opt)
    after = snapshot(opt)
    assert_same({name: after[name] for name in before}, before)
    train(model, opt, range(14))
    fresh_model, fresh = build()
    train(fresh_model, fresh, range(14))
    assert_same(snapshot(opt), snapshot(fresh))


@pytest.mark.parametrize("full, flatten", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("phase", PHASES)
def test_round_trip(full, flatten, phase):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten, full_state_dict=full)
    model, opt = build()
    train(model, opt, range(PHASES[phase]))
    assert latest(opt).phase == phase
    saved = get_optimizer_state_dict(model, opt, options=options)
    twin_model, twin = build(seed=1)
    twin_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(twin_model, twin, saved, options=options)
    goes_on(phase, (model, opt), (twin_model, twin))


@SINGLE_PROCESS
@TYPED_STORAGE
@pytest.mark.parametrize("phase", PHASES)
def test_through_a_file(tmp_path, phase):
    model, opt = build()
    train(model, opt, range(PHASES[phase]))
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    twin_model, twin = build(seed=1)
    model_state, opt_state = get_state_dict(twin_model, twin)
    state = {"model": model_state, "opt": opt_state}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(twin_model, twin, model_state_dict=state["model"], optim_state_dict=state["opt"])
    goes_on(phase, (model, opt), (twin_model, twin))
