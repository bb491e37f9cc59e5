"""Numbers of the schedule in the live parameter groups, through which ZeroRedundancyOptimizer saves and loads."""

import copy
import pickle

import pytest
import torch
from support import assert_same, latest, parameter, snapshot

from greedylr_fused import FusedAdamW, GreedyLR

SCHEDULE = GreedyLR(patience=0, factor=0.5, smooth=True, window_size=2)
LOSSES = [3.0, 2.0, 2.5, 4.0]


def build(backend, device, **options):
    params = [parameter(torch.zeros(n, device=device), torch.ones(n, device=device)) for n in (3, 2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 2e-3}]
    return FusedAdamW(groups, **{"lr": 1e-3, "schedule": SCHEDULE, "max_grad_norm": 1.0, "backend": backend} | options)


def train(opt, losses):
    for loss in losses:
        opt.step(loss=loss)


def shared(opt):
    """What an outer optimizer keeps of the groups: the same objects, without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in opt.param_groups]


def put(opt, groups, states=None):
    """As the outer optimizer loads."""
    for group, values in zip(opt.param_groups, groups, strict=True):
        group.update(values)
    for param, state in zip((p for g in opt.param_groups for p in g["params"]), states or (), strict=False):
        opt.state[param] = {name: value.clone().cpu() if name == "step" else value for name, value in state.items()}


def left_in(groups):
    return [group["control"] for group in groups]


@pytest.fixture
def opt(backend, device):
    opt = build(backend, device)
    train(opt, LOSSES)
    return opt


def test_what_state_dict_leaves_is_gone_after_a_step_and_kept_by_who_took_it(opt):
    assert left_in(shared(opt)) == [{}, {}]
    groups = shared(opt)
    saved = opt.state_dict()
    assert [{k: v for k, v in own.items() if k != "mirrored_lr"} for own in left_in(groups)] == left_in(
        saved["param_groups"]
    )
    kept = copy.deepcopy(groups)
    opt.step(loss=1.0)
    assert groups == kept and left_in(shared(opt)) == [{}, {}]


@pytest.mark.parametrize("use", ["step", "last_lr", "state_dict", "set_lr", "add_param_group", "copy"])
def test_numbers_put_into_the_groups_are_taken_over(opt, backend, device, use):
    groups = shared(opt)
    saved = opt.state_dict()  # fills them
    states = copy.deepcopy([opt.state[p] for g in opt.param_groups for p in g["params"]])
    fresh, twin = build(backend, device), build(backend, device)
    put(fresh, copy.deepcopy(groups), states)
    twin.load_state_dict(copy.deepcopy(saved))
    for one in (fresh, twin):
        if use == "set_lr":
            one.set_lr([3e-3, 4e-3])
        elif use == "add_param_group":
            one.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1, device=device))]})
        elif use != "step" and use != "copy":
            getattr(one, use)()
    if use == "copy":
        fresh, twin = copy.deepcopy(fresh), pickle.loads(pickle.dumps(twin))
        for one in (fresh, twin):
            for param in (p for g in one.param_groups for p in g["params"]):
                param.grad = torch.ones_like(param)
    for loss in (2.0, 1.0, 5.0):
        train(fresh, [loss])
        train(twin, [loss])
        assert fresh.last_lr() == twin.last_lr() and latest(fresh) == latest(twin)
    assert_same(snapshot(fresh), snapshot(twin))
    assert latest(fresh).step == len(LOSSES) + 3


def test_going_back_in_the_same_process(opt):
    groups = shared(opt)
    before = opt.state_dict()["param_groups"]
    train(opt, [9.0, 9.0])
    opt.observe(7.0)  # stays: it is the loss of a step to come
    put(opt, groups)
    assert opt.last_lr() == [group["lr"] for group in before]
    assert left_in(opt.state_dict()["param_groups"]) == left_in(before)
    opt.step()
    assert latest(opt).loss == 7.0


def test_what_was_written_after_saving_stands(opt):
    opt.state_dict()
    opt.set_lr([5e-3, 6e-3])
    opt.observe(4.0)
    assert opt.last_lr() == [5e-3, 6e-3]
    opt.step()
    assert latest(opt).loss == 4.0 and latest(opt).step == len(LOSSES) + 1


def test_an_lr_that_the_host_had_not_seen_yet_comes_from_the_device(opt, backend, device):
    """On a GPU a group shows the LR of some steps ago."""
    groups = shared(opt)
    exact = [group["lr"] for group in opt.state_dict()["param_groups"]]
    for group in groups:
        group["lr"] = group["control"]["mirrored_lr"] = group["lr"] * 1.25
    fresh = build(backend, device)
    put(fresh, groups)
    assert fresh.last_lr() == exact
    groups[0]["lr"] = 4e-3  # edited
    put(fresh, groups)
    assert fresh.last_lr() == [4e-3, exact[1]]


def test_damaged_numbers_are_refused_until_they_are_replaced(opt, backend, device):
    groups = shared(opt)
    opt.state_dict()
    fresh, twin = build(backend, device), build(backend, device)
    for one in (fresh, twin):
        train(one, LOSSES[:2])
    bad = copy.deepcopy(groups)
    bad[1]["control"]["good"] = -1.0
    put(fresh, bad)
    before = snapshot(twin)
    for use in (lambda: fresh.step(loss=1.0), fresh.last_lr, fresh.state_dict):
        with pytest.raises(ValueError, match=r'param_groups\[1\]\["control"\]\["good"\] is -1.0'):
            use()
        assert_same(snapshot(fresh), before)
    put(fresh, shared(twin))
    for one in (fresh, twin):
        train(one, LOSSES[2:])
    assert_same(snapshot(fresh), snapshot(twin))


def test_a_plain_optimizer_takes_no_notice(opt, backend, device):
    groups = shared(opt)
    opt.state_dict()
    plain = build(backend, device, schedule=None)
    put(plain, groups)
    plain.step()
    assert plain.last_lr() == [group["lr"] for group in groups]


def test_loading_never_leaves_numbers_behind(opt, backend, device):
    saved = opt.state_dict()
    for one in (opt, build(backend, device)):
        one.load_state_dict(saved)
        assert left_in(one.param_groups) == [{}, {}]
