"""Checkpoints that a sharded optimizer refuses: on every rank, by the name of the key, and nothing has changed."""

import copy

import pytest
from resharding import SAVED, differences, plain, seen, sharded, train
from support.ranks import run
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

WORLD = 2
FULL = StateDictOptions(full_state_dict=True)


def number(state, name, value):
    state = copy.copy(state) | {"param_groups": copy.deepcopy(state["param_groups"])}
    for group in state["param_groups"]:
        group["control"][name] = value
    return state


def raised(action):
    with pytest.raises((TypeError, ValueError)) as error:
        action()
    return str(error.value)


def refuse(rank):
    """The messages, and what differs afterwards from an optimizer that was left alone."""
    (net, opt), (twin_net, twin) = (sharded("float32") for _ in range(2))
    whole_net, whole_opt = plain("float32", seed=0)
    for one in ((net, opt), (twin_net, twin), (whole_net, whole_opt)):
        train(*one, range(SAVED))
    parts = get_optimizer_state_dict(net, opt)
    full = get_optimizer_state_dict(net, opt, options=FULL)
    table = opt._engine.table
    other_rank = whole_opt.state_dict() | {"state": dict(enumerate(opt.state.values()))}
    said = [
        raised(lambda: set_optimizer_state_dict(net, opt, number(parts, "best", float("nan")))),
        raised(lambda: set_optimizer_state_dict(net, opt, number(full, "good", 0.5), options=FULL)),
        raised(lambda: opt.load_state_dict(whole_opt.state_dict())),
        raised(lambda: whole_opt.load_state_dict(other_rank)),
    ]
    assert opt._engine.table is table
    before = differences(seen(net, opt), seen(twin_net, twin))
    for one in ((net, opt), (twin_net, twin)):
        train(*one, [SAVED])
    assert opt._engine.table is table
    return said, before + differences(seen(net, opt), seen(twin_net, twin))


def test_refused_on_every_rank_and_nothing_changed():
    for said, different in run(refuse, WORLD):
        assert different == []
        best, good, no_parts, parts = said
        assert 'param_groups[0]["control"]["best"] is nan' in best
        assert 'param_groups[0]["control"]["good"] is 0.5' in good
        assert 'state[0]["exp_avg"] is no DTensor, allowed is placements' in no_parts
        assert "set_optimizer_state_dict" in no_parts and "full_state_dict=True" in no_parts
        assert 'state[0]["exp_avg"] is a DTensor with placements' in parts and "allowed is a plain tensor" in parts
