"""Checkpoints that a sharded optimizer refuses: on every rank, by the name of the key, and nothing has changed."""

import copy

import pytest
from resharding import SAVED, differences, plain, seen, sharded, train
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
    """Each is told by the name of the key, and afterwards nothing differs from an optimizer that was left alone."""
    (net, opt), (twin_net, twin) = (sharded("float32") for _ in range(2))
    whole_net, whole_opt = plain("float32", seed=0)
    for one in ((net, opt), (twin_net, twin), (whole_net, whole_opt)):
        train(*one, range(SAVED))
    parts = get_optimizer_state_dict(net, opt)
    full = get_optimizer_state_dict(net, opt, options=FULL)
    table = opt._engine.table
    other_rank = whole_opt.state_dict() | {"state": dict(enumerate(opt.state.values()))}
    best = raised(lambda: set_optimizer_state_dict(net, opt, number(parts, "best", float("nan"))))
    assert 'param_groups[0]["control"]["best"]: expected a finite number' in best and "got nan" in best
    good = raised(lambda: set_optimizer_state_dict(net, opt, number(full, "good", 0.5), options=FULL))
    assert 'param_groups[0]["control"]["good"]: expected a whole number' in good and "got 0.5" in good
    no_parts = raised(lambda: opt.load_state_dict(whole_opt.state_dict()))
    assert 'state[0]["exp_avg"]: expected placements' in no_parts and "got no DTensor" in no_parts
    assert "set_optimizer_state_dict" in no_parts and "full_state_dict=True" in no_parts
    of_parts = raised(lambda: whole_opt.load_state_dict(other_rank))
    assert 'state[0]["exp_avg"]: expected a plain tensor' in of_parts and "got a DTensor with placements" in of_parts
    assert opt._engine.table is table
    assert differences(seen(net, opt), seen(twin_net, twin)) == []
    for one in ((net, opt), (twin_net, twin)):
        train(*one, [SAVED])
    assert opt._engine.table is table
    assert differences(seen(net, opt), seen(twin_net, twin)) == []


def test_refused_on_every_rank_and_nothing_changed(ranks):
    ranks(refuse)
