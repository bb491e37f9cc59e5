"""Checkpoints with random damage: each loads into an optimizer that trains on, or is refused and changes nothing."""

import copy
import math
import traceback

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import MOMENTS, assert_same, generator, parameter, snapshot, spread

from greedylr_fused import FusedAdamW, GreedyLR

NUMBERS = st.one_of(
    st.floats(),
    st.integers(-3, 9),
    st.sampled_from([0, 1, 2.0, 4, 0.01, 1e300, 2**53, 10**400, True]),
)
TENSORS = st.sampled_from(
    [
        torch.ones(()),
        torch.tensor(math.nan),
        torch.zeros(3),
        torch.ones(3, dtype=torch.float64),
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(4, dtype=torch.complex64),
        torch.ones(1).expand(4),
        torch.ones(4, requires_grad=True),
        torch.ones(2, 2),
    ]
)
VALUES = st.one_of(
    NUMBERS,
    TENSORS,
    st.sampled_from([None, "", "text", [], {}, (), [1.0], (0.5, 0.5), [0, 1], b"", {"step": 1}]),
    st.lists(NUMBERS, max_size=5),
)
KEYS = st.one_of(st.sampled_from(["control", "lr", "extra", 0, 7, None, "exp_avg"]), st.integers(0, 4))


def build(lr=0.01):
    params = [parameter(spread(generator(n), n, -1, 0).float()) for n in (4, 3, 1)]
    groups = [{"params": params[:2], "lr": lr}, {"params": params[2:], "lr": 2 * lr, "amsgrad": True}]
    schedule = GreedyLR(patience=1, smooth=True, window_size=3)
    return FusedAdamW(groups, schedule=schedule, max_grad_norm=1.0)


def train(opt, seeds):
    for seed in seeds:
        for param in (p for group in opt.param_groups for p in group["params"]):
            param.grad = spread(generator(seed), param.numel(), -2, 0).float()
        opt.step(loss=3.0 - 0.1 * seed)


SOURCE = build()
train(SOURCE, range(5))
SAVED = SOURCE.state_dict()


def places(node, path=()):
    """Every container of a checkpoint."""
    if isinstance(node, (dict, list)):
        yield path
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*path, key))


PLACES = list(places(SAVED))


@st.composite
def damaged(draw):
    """A checkpoint with one to three changes: values replaced, removed, added or exchanged."""
    saved = copy.deepcopy(SAVED)
    for _ in range(draw(st.integers(1, 3))):
        node = saved
        for key in draw(st.sampled_from(PLACES)):
            inner = node[key] if key in (node if isinstance(node, dict) else range(len(node))) else None
            if not isinstance(inner, (dict, list)):
                break
            node = inner
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "exchange", "move"]))
        if action == "add" or not keys:
            if isinstance(node, dict):
                node[draw(KEYS)] = copy.deepcopy(draw(VALUES))
            else:
                node.append(copy.deepcopy(draw(VALUES)))
            continue
        key, other = draw(st.sampled_from(keys)), draw(st.sampled_from(keys))
        if action == "replace":
            node[key] = copy.deepcopy(draw(VALUES))
        elif action == "remove":
            del node[key]
        else:
            node[key], node[other] = node[other], node[key] if action == "exchange" else node[other]
    return saved


def check_valid(opt):
    """Of an optimizer that took a checkpoint: all numbers within what they mean, and training goes on."""
    for group, (low, high) in zip(opt.param_groups, opt._control.bounds, strict=True):
        assert low <= group["lr"] <= high
    for numbers in opt._control.numbers():
        for name in ("step", "skipped", "good", "bad", "cooldown_left", "warmup_left", "resets_left"):
            assert numbers[name] >= 0 and numbers[name] == int(numbers[name]), name
        assert not math.isnan(numbers["best"]) and len(numbers["window"]) <= 3
        assert all(map(math.isfinite, [*numbers["window"], numbers["window_sum"], numbers["lr"]]))
    for index, own in opt.state.items():
        for name in set(own) - {"step", *MOMENTS} if isinstance(index, torch.Tensor) else ():
            del own[name]  # unknown keys are kept, as in torch
    before = snapshot(opt)
    train(opt, range(5, 7))
    for name, value in snapshot(opt).items():
        if name.startswith("step"):
            assert value == before.get(name, 0.0) + 2 or before[name] >= 2**24
        elif name != "control":
            assert value.dtype == torch.float32, name
    build().load_state_dict(opt.state_dict())


@pytest.mark.filterwarnings("ignore:Casting complex values")  # of an unknown key, by PyTorch's loader
@given(loaded=damaged())
def test_any_checkpoint_loads_whole_or_not_at_all(loaded):
    opt, twin = build(0.015), build(0.015)
    for one in (opt, twin):
        train(one, range(10, 13))
        one.observe(2.0)
    table, groups = opt._engine.table, [dict(group) for group in opt.param_groups]
    try:
        opt.load_state_dict(loaded)
    except (TypeError, ValueError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        assert str(error).startswith("checkpoint") or place.name == "<genexpr>"  # PyTorch's loader, over unknown keys
        assert opt._engine.table is table and [dict(group) for group in opt.param_groups] == groups
        assert_same(snapshot(opt), snapshot(twin))
        for one in (opt, twin):
            one.step()
        assert_same(snapshot(opt), snapshot(twin))
        assert opt._engine.table is table
    else:
        check_valid(opt)


def test_what_is_not_damaged_loads():
    opt = build()
    opt.load_state_dict(copy.deepcopy(SAVED))
    check_valid(opt)
