"""Recorded norms that leave an optimizer and come back: checkpoints of every kind, copies, groups that are added."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import generator, parameter, spread
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from greedylr_fused import FusedAdamW, GreedyLR, norms

SIZES = (129, 20, 1)


def build(steps=8, schedule=None, kind=FusedAdamW, **options):
    params = [parameter(spread(generator(n), n, -1, 0).float()) for n in SIZES]
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.01, "weight_decay": 0.1}]
    if kind is FusedAdamW:
        options |= {"record_grad_norms": steps, "schedule": schedule}
    return kind(groups, **options)


def train(opt, steps):
    for step in steps:
        for i, param in enumerate(p for group in opt.param_groups for p in group["params"]):
            param.grad = spread(generator(100 * step + i), param.numel(), -2, 0).float()
        opt.step() if getattr(opt, "schedule", None) is None else opt.step(loss=3.0 - step)
    return opt


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WHOLE = train(build(), range(7)).grad_norms()


def assert_rows(opt, wanted):
    rows = opt.grad_norms()
    assert rows.dtype == torch.float32 and rows.shape == wanted.shape
    assert torch.equal(rows.view(torch.int32), wanted.view(torch.int32)), (rows, wanted)


def unrecorded(wanted, *at):
    wanted = wanted.clone()
    wanted[list(at)] = math.nan
    return wanted


@pytest.mark.parametrize("schedule", [None, GreedyLR(patience=0, smooth=False)], ids=["plain", "driven"])
@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
def test_recording_goes_on(way, schedule):
    opt = train(build(schedule=schedule), range(4))
    if way == "file":
        other = build(schedule=schedule)
        other.load_state_dict(through_file(opt.state_dict()))
    else:
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
        assert other.record_grad_norms == 8
    assert_rows(other, WHOLE[:4])
    for one in (opt, other):
        assert_rows(train(one, range(4, 7)), WHOLE)


def test_what_is_saved_is_one_text_in_the_first_group():
    saved = train(build(), range(3)).state_dict()["param_groups"]
    texts = [group["control"]["grad_norms"] for group in saved]
    assert texts[1] == "" and torch.equal(norms.from_text(texts[0]), WHOLE[:3])
    assert [group["control"]["grad_norms"] for group in build().state_dict()["param_groups"]] == ["", ""]


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_texts_keep_every_bit(size):
    bits = torch.randint(-(2**31), 2**31, (size, 2), generator=generator(1)).to(torch.int32)
    rows = bits.view(torch.float32)
    assert torch.equal(norms.from_text(norms.to_text(rows)).view(torch.int32), bits)
    assert norms.to_text(torch.tensor([[1.0, -2.0]])) == "AACAPwAAAMA="


def test_more_room_and_less_of_it():
    saved = train(build(steps=4), range(5)).state_dict()
    more, less = build(steps=7), build(steps=2)
    for opt in (more, less):
        opt.load_state_dict(saved)
        train(opt, [5, 6])
    assert_rows(more, unrecorded(WHOLE, 4))
    assert_rows(less, WHOLE[:2])


def test_a_checkpoint_without_norms():
    """Of an earlier version, of a run that did not record, of torch's AdamW: those steps become NaN."""
    earlier = train(build(), range(3)).state_dict()
    for group in earlier["param_groups"]:
        del group["control"]["grad_norms"]
    others = [train(build(None, schedule=schedule), range(3)) for schedule in (None, GreedyLR(smooth=False))]
    others.append(train(build(kind=torch.optim.AdamW), range(3)))
    for saved in (earlier, *(other.state_dict() for other in others)):
        opt = train(build(), [5, 6])
        opt.load_state_dict(saved)
        assert_rows(opt, unrecorded(WHOLE[:3], 0, 1, 2))
        assert_rows(train(opt, [3]), unrecorded(WHOLE[:4], 0, 1, 2))


@pytest.mark.parametrize("schedule", [None, GreedyLR(patience=0, smooth=False)], ids=["plain", "driven"])
def test_an_optimizer_that_does_not_record_drops_them(schedule):
    opt = build(None, schedule=schedule)
    opt.load_state_dict(train(build(schedule=schedule), range(3)).state_dict())
    train(opt, [3])
    assert opt.metrics().step == 4
    saved = opt.state_dict()["param_groups"]
    assert [group.get("control", {}).get("grad_norms", "") for group in saved] == ["", ""]


def test_another_schedule_takes_them_over():
    opt = build(schedule=GreedyLR(patience=0, smooth=False))
    opt.load_state_dict(train(build(), range(3)).state_dict())
    assert_rows(train(opt, [3]), WHOLE[:4])


def test_an_added_group_keeps_them():
    opt = train(build(), range(3))
    added = parameter(torch.ones(4))
    opt.add_param_group({"params": [added], "lr": 0.1})
    assert_rows(opt, WHOLE[:3])
    train(opt, [3])
    assert opt.grad_norms().shape == (4, 2) and opt.grad_norms()[3, 1] > WHOLE[3, 1]


def test_a_load_that_fails_leaves_them():
    opt = train(build(), range(2))
    saved = train(build(), range(3)).state_dict()

    def fail(_):
        raise OSError("full")

    with opt.register_load_state_dict_post_hook(fail), pytest.raises(OSError, match="full"):
        opt.load_state_dict(saved)
    assert_rows(opt, WHOLE[:2])


def test_numbers_put_into_live_groups():
    """As ZeroRedundancyOptimizer loads (tests/distributed/test_checkpoint_zero.py)."""
    opt = build()
    for group, saved in zip(opt.param_groups, train(build(), range(3)).state_dict()["param_groups"], strict=True):
        group["control"] = saved["control"]
    assert_rows(opt, WHOLE[:3])


def test_a_plain_optimizer_has_the_keys_of_torchs():
    ours, torchs = (train(build(None, kind=kind), [0]).state_dict() for kind in (FusedAdamW, torch.optim.AdamW))
    assert [group.keys() for group in ours["param_groups"]] == [group.keys() for group in torchs["param_groups"]]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")  # a single process
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # inside torch.distributed.checkpoint
@pytest.mark.parametrize("full, flatten", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("schedule", [None, GreedyLR(patience=0, smooth=False)], ids=["plain", "driven"])
def test_distributed_checkpointing(schedule, full, flatten, tmp_path):
    options = StateDictOptions(full_state_dict=full, flatten_optimizer_state_dict=flatten)

    def pair():
        opt = build(schedule=schedule)
        params = [param for group in opt.param_groups for param in group["params"]]
        return torch.nn.ParameterList(params), opt

    model, opt = pair()
    train(opt, range(3))
    dcp.save({"opt": get_optimizer_state_dict(model, opt, options=options)}, checkpoint_id=tmp_path, no_dist=True)
    model, other = pair()
    found = {"opt": get_optimizer_state_dict(model, other, options=options)}
    assert other.grad_norms().shape == (0, 2), "to make state is no step"
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(model, other, found["opt"], options=options)
    assert_rows(other, WHOLE[:3])
    assert_rows(train(other, range(3, 7)), WHOLE)


def test_nothing_was_recorded():
    with pytest.raises(RuntimeError, match=r"grad_norms\(\): no norms are recorded.*record_grad_norms=N"):
        build(None).grad_norms()


@pytest.mark.parametrize(
    ("steps", "error"),
    [(0, ValueError), (-1, ValueError), (2**25 + 1, ValueError), (True, TypeError), (1e3, TypeError), ("9", TypeError)],
)
def test_steps_that_are_none(steps, error):
    with pytest.raises(error, match=r"record_grad_norms: got .*allowed is None.*pass the number of steps"):
        build(steps)
