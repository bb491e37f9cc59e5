"""ZeroRedundancyOptimizer, which saves and loads without calling a method of the optimizer that it wraps to load."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn

from greedylr_fused import FusedAdamW, GreedyLR

WORLD = 2
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=3, cooldown=1)
OPTIONS = {"schedule": SCHEDULE, "max_grad_norm": 1.0, "partitions": WORLD, "state_dtype": torch.float32}
OPTIONS |= {"record_grad_norms": 9}


def build(seed=1, dtype=torch.float32, kind=FusedAdamW):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it was not imported before

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2)).to(dtype)
    groups = [{"params": list(model[:2].parameters())}, {"params": list(model[2].parameters()), "lr": 0.005}]
    options = {"foreach": True} if kind is not FusedAdamW else OPTIONS
    return model, ZeroRedundancyOptimizer(groups, kind, lr=0.01, **options)


def train(model, opt, rank, steps):
    """Gradients of the whole batch on every rank; each rank tells of its own loss."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        loss = {"loss": 3.0 - 0.1 * step + 0.2 * (step % 3) + 0.01 * rank}
        opt.step(**loss if isinstance(opt.optim, FusedAdamW) else {})


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def consolidated(opt, rank):
    """The whole state, which only rank 0 has; the others get a copy, as from its file."""
    opt.consolidate_state_dict(0)
    held = [opt.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(held, 0)
    return opt.state_dict() if rank == 0 else held[0]


def seen(model, opt):
    """All that must be the same."""
    opt.optim.check_ranks_agree()
    return {
        "lr": opt.optim.last_lr(),  # first, since it takes over what was loaded
        "params": [param.detach().double().clone() for param in model.parameters()],
        "numbers": repr(opt.optim._control.numbers()),
        "states": [
            {name: value.double().clone() for name, value in opt.optim.state[param].items()}
            for group in opt.optim.param_groups
            for param in group["params"]
        ],
        "shown": [group["lr"] for group in opt.param_groups],
    }


def load(rank, dtype, source):
    model, opt = build(seed=1, dtype=dtype)
    twin_model, twin = build(seed=1, dtype=dtype)
    for pair in ((model, opt), (twin_model, twin)):
        train(*pair, rank, range(5))
    saved = consolidated(opt, rank)
    if source == "file":
        saved = through_file(saved)
    else:  # in memory the tensors are the live ones, as ever; the numbers stay what they were
        saved = saved | {"state": copy.deepcopy(saved["state"])}
        kept = copy.deepcopy(saved["param_groups"])
        train(model, opt, rank, range(5, 7))
        assert saved["param_groups"] == kept
    fresh_model, fresh = (model, opt) if source == "itself" else build(seed=2, dtype=dtype)
    fresh_model.load_state_dict(twin_model.state_dict())
    fresh.load_state_dict(saved)
    loaded = seen(fresh_model, fresh)
    before = seen(twin_model, twin)
    again = consolidated(fresh, rank)["param_groups"]  # before a step was made
    for pair in ((fresh_model, fresh), (twin_model, twin)):
        train(*pair, rank, range(5, 9))
    return {
        "loaded": (loaded, before),
        "after": (seen(fresh_model, fresh), seen(twin_model, twin)),
        "again": ([g["control"]["window"] for g in again], [g["control"]["window"] for g in saved["param_groups"]]),
        "left": [dict(group["control"]) for group in (*fresh.param_groups, *fresh.optim.param_groups)],
        "dtypes": {value.dtype for state in fresh.optim.state.values() for value in state.values()},
    }


def from_torch(rank):
    """Steps and moments of AdamW; the schedule starts at the LR it ended with."""
    model, opt = build(kind=torch.optim.AdamW)
    train(model, opt, rank, range(3))
    for group in opt.param_groups:
        group["lr"] *= 0.5
    saved = through_file(consolidated(opt, rank))
    fresh_model, fresh = build()
    fresh.load_state_dict(saved)
    lr = fresh.optim.last_lr()
    states = [(opt.optim.state[p], fresh.optim.state[q]) for p, q in both(model, fresh_model) if p in opt.optim.state]
    same_states = all(same(dict(a), dict(b)) for a, b in states) and len(states) > 0
    train(fresh_model, fresh, rank, [3])
    return lr, same_states, {state["step"].item() for state in fresh.optim.state.values()}


def both(model, other):
    return zip(model.parameters(), other.parameters(), strict=True)


def damaged(rank):
    """What is said of a number that is none, at the next step, by every rank."""
    model, opt = build()
    train(model, opt, rank, range(2))
    saved = consolidated(opt, rank)
    saved["param_groups"][0]["control"]["best"] = float("nan")
    _, fresh = build()
    fresh.load_state_dict(copy.deepcopy(saved))
    with pytest.raises(ValueError, match="best") as error:
        train(model, fresh, rank, [2])
    return str(error.value)


def cases(rank):
    wanted = [(torch.float32, "memory"), (torch.float32, "itself"), (torch.bfloat16, "file")]
    found = {(str(dtype), source): load(rank, dtype, source) for dtype, source in wanted}
    return found | {"torch": from_torch(rank), "damaged": damaged(rank)}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def found():
    return run(cases, WORLD)


def test_states_and_schedule_come_back_and_go_on_to_the_bit(found):
    for rank in found:
        for case, result in rank.items():
            if case in ("damaged", "torch"):
                continue
            for moment in ("loaded", "after"):
                ours, twin = result[moment]
                for name in twin:
                    assert same(ours[name], twin[name]), (case, moment, name)
            assert same(*result["again"]), case
            assert result["left"] == [{}] * 4
            assert result["dtypes"] == {torch.float32}


def test_adamw_hands_over(found):
    for rank in found:
        assert rank["torch"] == ([0.005, 0.0025], True, {4.0})


def test_damage_is_named_at_the_next_step(found):
    for rank in found:
        assert 'checkpoint: param_groups[0]["control"]["best"] is nan' in rank["damaged"]
