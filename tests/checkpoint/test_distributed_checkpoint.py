"""torch.distributed.checkpoint.state_dict, which creates state by a step with LR 0, zero gradients and no loss."""

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

from greedylr_fused import FusedAdamW, GreedyLR

SCHEDULE = GreedyLR(patience=0, factor=0.5, smooth=True, window_size=3)


def build(schedule=SCHEDULE, seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[1].parameters()), "weight_decay": 0.3}]
    return model, FusedAdamW(groups, lr=0.01, schedule=schedule, max_grad_norm=1.0, **options)


def train(model, opt, steps, needs_loss=True):
    for i in range(steps):
        opt.zero_grad()
        loss = model(torch.full((3, 4), 1.0 + i)).square().mean()
        loss.backward()
        opt.step(loss=loss) if needs_loss else opt.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_materialisation_leaves_everything_untouched(amsgrad):
    model, opt = build(amsgrad=amsgrad)
    before = snapshot(opt)
    found = get_optimizer_state_dict(model, opt)
    after = snapshot(opt)
    assert_same({name: after[name] for name in before}, before)
    for state in opt.state.values():
        assert all((value == 0).all() for value in state.values())
    assert len(found["state"]) == 4 and len(next(iter(found["state"].values()))) == 3 + amsgrad
    assert opt.metrics().step == 0 and opt.read_lr() == [0.01, 0.01]
    assert [group["lr"] for group in opt.param_groups] == [0.01, 0.01]
    train(model, opt, 2)
    fresh_model, fresh = build(amsgrad=amsgrad)
    train(fresh_model, fresh, 2)
    assert_same(snapshot(opt), snapshot(fresh))


def test_materialisation_without_a_schedule():
    model, opt = build(None)
    before = snapshot(opt)
    get_optimizer_state_dict(model, opt)
    after = snapshot(opt)
    assert_same({name: after[name] for name in before}, before)
    assert all((value == 0).all() for state in opt.state.values() for value in state.values())
    assert len(opt.state) == 4 and opt.read_lr() == [0.01, 0.01]


def test_a_warmup_from_lr_0_is_a_step():
    """It looks like materialisation, but for its gradients."""
    model, opt = build(None)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: step / 10)
    train(model, opt, 1, needs_loss=False)
    scheduler.step()
    assert all(state["step"] == 1 for state in opt.state.values()) and opt.metrics().step == 1
    assert any((state["exp_avg"] != 0).any() for state in opt.state.values())


@pytest.mark.parametrize(
    "full, flatten", [(False, False), (False, True), (True, False)]
)  # both: torch fails on its own
@pytest.mark.parametrize(
    "schedule", [SCHEDULE, GreedyLR(patience=0, factor=0.5, smooth=False), None], ids=["smooth", "greedy", "plain"]
)
def test_round_trip(full, flatten, schedule):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten, full_state_dict=full)
    model, opt = build(schedule)
    train(model, opt, 5)
    saved = get_optimizer_state_dict(model, opt, options=options)
    twin_model, twin = build(schedule, seed=1)
    twin_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(twin_model, twin, saved, options=options)
    assert twin.read_lr() == opt.read_lr()
    for mine, theirs in zip(opt._control.numbers(), twin._control.numbers(), strict=True):
        kept = mine if schedule else ("step", "lr")  # without a schedule what torch's own checkpoint holds
        assert all(mine[name] == theirs[name] or mine[name] != mine[name] for name in kept)
    train(model, opt, 3)
    train(twin_model, twin, 3)
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    assert twin.read_lr() == opt.read_lr()


@SINGLE_PROCESS
@TYPED_STORAGE
def test_model_and_optimizer_together_through_a_file(tmp_path):
    import torch.distributed.checkpoint as dcp

    model, opt = build()
    train(model, opt, 4)
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    twin_model, twin = build(seed=1)
    model_state, opt_state = get_state_dict(twin_model, twin)
    state = {"model": model_state, "opt": opt_state}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(twin_model, twin, model_state_dict=state["model"], optim_state_dict=state["opt"])
    assert twin.read_lr() == opt.read_lr() and twin.metrics().step == 4
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    train(model, opt, 3)
    train(twin_model, twin, 3)
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    assert twin.read_lr() == opt.read_lr()


def as_before(saved):
    """What an earlier version saved: other keys of the schedule's numbers."""
    for group in saved["param_groups"]:
        own = group["control"]
        del own["version"], own["event"]
        own["grad_norms"] = ""
    return saved


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a single process is what is meant
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # inside torch.distributed.checkpoint
@pytest.mark.parametrize("full", [False, True])
def test_what_an_earlier_version_saved(full, tmp_path):
    """As docs/migration.md says: torch compares keys, in a file those that are missing, in a full dictionary others."""
    options = StateDictOptions(full_state_dict=full)
    model, opt = build()
    train(model, opt, 5)
    saved = as_before(get_optimizer_state_dict(model, opt, options=options))
    twin_model, twin = build()
    twin_model.load_state_dict(model.state_dict())
    if full:
        for group in saved["param_groups"]:
            group["control"].pop("grad_norms", None)
    else:
        dcp.save({"opt": saved}, checkpoint_id=tmp_path, no_dist=True)
        found = {"opt": get_optimizer_state_dict(twin_model, twin, options=options)}
        dcp.load(found, checkpoint_id=tmp_path, no_dist=True, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
        saved = found["opt"]
    set_optimizer_state_dict(twin_model, twin, saved, options=options)
    train(model, opt, 3)
    train(twin_model, twin, 3)
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    assert twin.read_lr() == opt.read_lr()


def test_numbers_of_a_schedule_that_is_not_there_are_not_kept():
    """ZeroRedundancyOptimizer's loader writes them to the groups, and its state_dict() takes them from there."""
    driven_model, driven = build()
    train(driven_model, driven, 2)
    model, opt = build(schedule=None)
    for group, own in zip(opt.param_groups, driven.state_dict()["param_groups"], strict=True):
        group["control"] = own["control"]
    train(model, opt, 1, needs_loss=False)
    assert [group["control"] for group in opt.param_groups] == [{}, {}]
    driven.load_state_dict(opt.state_dict())
    assert driven.metrics().step == 1 and driven._control.numbers()[0]["best"] == float("inf")


def test_a_step_without_loss_at_lr_0_is_an_error_once_there_is_state():
    model, opt = build()
    train(model, opt, 1)
    for group in opt.param_groups:
        group["lr"] = 0.0
    with pytest.raises((RuntimeError, ValueError)):
        opt.step()


@SINGLE_PROCESS
@pytest.mark.parametrize("flatten", [False, True])
def test_the_checkpoint_of_torchs_adamw_is_one_of_a_plain_optimizer(flatten, tmp_path):
    """Distributed checkpointing compares keys: a plain optimizer has those of torch's and no more."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = torch.nn.Linear(4, 2)
    torchs = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    torchs.step()
    torchs.zero_grad()  # state is created for parameters that have none
    dcp.save({"opt": get_optimizer_state_dict(model, torchs, options=options)}, checkpoint_id=tmp_path, no_dist=True)
    ours = FusedAdamW(model.parameters(), lr=0.2)
    found = {"opt": get_optimizer_state_dict(model, ours, options=options)}
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(model, ours, found["opt"], options=options)
    assert ours.read_lr() == [0.1] and ours.metrics().step == 1
    for param in model.parameters():
        assert torch.equal(ours.state[param]["exp_avg"], torchs.state[param]["exp_avg"])


def test_a_loss_observed_before_checkpointing_creates_state():
    model = torch.nn.Linear(4, 2)
    opt = FusedAdamW(model.parameters(), lr=0.1, schedule=GreedyLR(smooth=False))
    opt.observe(5.0)
    get_optimizer_state_dict(model, opt)
    model(torch.ones(1, 4)).sum().backward()
    opt.step()
    assert opt.metrics().step == 1 and opt.metrics().loss == 5.0
