"""Loading that fails half-way: the optimizer goes on with all that it had, on every backend and device."""

import copy

import pytest
import torch
from support.tensors import assert_same, snapshot
from support.twins import Twins


@pytest.fixture
def twins(backend, device):
    return Twins(backend, device)


class Failure(Exception):
    pass


def fail(*_, **__):
    raise Failure


@pytest.mark.parametrize("where", ["before", "after", "torch", "moments", "control", "interrupt"])
def test_a_load_that_fails_anywhere_changes_nothing(twins, monkeypatch, where):
    """In hooks of the user, in PyTorch's loader, for want of memory, by Ctrl-C."""
    error = Failure
    if where == "before":
        twins.opt.register_load_state_dict_pre_hook(fail)
    elif where == "after":
        twins.opt.register_load_state_dict_post_hook(fail)
    elif where == "torch":
        twins.saved["param_groups"][0]["extra"] = type("Extra", (), {"__deepcopy__": fail})()
    elif where == "moments":
        monkeypatch.setattr("greedylr_fused.checkpoint.stored.moment_dtype", fail)
    elif where == "control":
        monkeypatch.setattr("greedylr_fused.optimizer.Rates", fail)
    else:
        twins.opt.register_load_state_dict_post_hook(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        error = KeyboardInterrupt
    twins.refuse(twins.saved, error, None)


def test_after_a_refusal_the_right_checkpoint_loads(twins):
    right = copy.deepcopy(twins.saved)
    twins.saved["state"][0]["exp_avg"] = torch.ones(4)
    twins.refuse(twins.saved, ValueError, "shape")
    for opt in (twins.opt, twins.twin):
        opt.load_state_dict(right)
    assert_same(snapshot(twins.opt), snapshot(twins.twin))
    assert twins.opt.state_dict()["param_groups"] == right["param_groups"]
