"""The recorder where the state of an optimizer is replaced: by checkpoints that are loaded or fail, by added groups."""

import copy

import pytest
import torch
from support.late_copies import LateCopies
from support.telemetry import RESTLESS, optimizer, recorded, replay, step

from greedylr_fused import Constant, DeviceSchedule, FusedAdamW, GreedyLR


def test_going_on_from_a_checkpoint():
    """Earlier and later ones; the events at the seam are those of the state that was loaded."""
    opt = optimizer()
    recorder, kept = recorded(opt)
    for i in range(4):
        step(opt, loss=4.0 - i)
    saved = copy.deepcopy(opt.state_dict())
    for i in range(3):
        step(opt, loss=9.0 + i)
    opt.load_state_dict(saved)
    for i in range(4):
        step(opt, loss=9.0 + i)
    later = optimizer()
    later_recorder, later_kept = recorded(later)
    later.load_state_dict(opt.state_dict())
    step(later, loss=20.0)
    recorder.close()
    later_recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8]
    assert [each.event for each in kept.steps] == ["raise"] * 4 + ["cut"] * 7
    assert [each.lost for each in kept.steps] == [0] * 11
    assert later_kept.numbers == [9] and later_kept.steps[0].event == "cut" and later_kept.steps[0].lost == 0


def test_a_checkpoint_that_could_not_be_loaded():
    opt, other = optimizer(), optimizer()
    recorder, kept = recorded(opt)
    for i in range(5):
        step(opt, loss=4.0 - i)

    def fails(_):
        raise ValueError("a hook of the user's")

    for steps_of_other in (2, 3, 3):  # to step 2; to that of the last step; past it
        for _ in range(steps_of_other):
            step(other)
        with pytest.raises(ValueError, match="a hook of the user's"):
            hook = opt.register_load_state_dict_post_hook(fails)
            opt.load_state_dict(other.state_dict())
        hook.remove()
        step(opt, loss=9.0)
    recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [each.event for each in kept.steps] == ["raise"] * 5 + ["cut"] * 3
    assert not any(each.lost for each in kept.steps)


def test_groups_that_are_added(monkeypatch):
    late = LateCopies(monkeypatch)
    opt = optimizer()
    recorder, kept = recorded(opt)
    for _ in range(3):
        step(opt)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5})
    for _ in range(2):
        step(opt)
    late.arrive()
    recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5]
    assert [len(each.metrics.lr) for each in kept.steps] == [2, 2, 2, 3, 3]
    assert [each.event for each in kept.steps] == ["raise", "cut", "cut", "cut", "cut"]


def test_states_that_distributed_checkpointing_creates():
    """Its step that makes an optimizer create its states is none."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(2, 2)
    opt = FusedAdamW(model.parameters(), schedule=RESTLESS)
    recorder, kept = recorded(opt)
    get_optimizer_state_dict(model, opt)
    for _ in range(2):
        step(opt)
    recorder.close()
    assert kept.numbers == [1, 2] and kept.steps[0].lost == 0


def test_a_schedule_of_another_optimizer():
    param = torch.nn.Parameter(torch.ones(3))
    other = torch.optim.SGD([param], lr=torch.tensor(0.1))
    schedule = DeviceSchedule(other, GreedyLR(patience=1, smooth=False, hold=0, base=Constant(warmup_steps=2)))
    recorder, kept = recorded(schedule, capacity=4)
    for i in range(6):
        schedule.step(loss=float(10 - i))
    saved = schedule.state_dict()
    schedule.step(loss=20.0)
    schedule.load_state_dict(saved)
    schedule.step(loss=20.0)
    recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5, 6, 7, 7]
    assert [each.event for each in kept.steps[:6]] == [None, "raise"] * 3
    assert kept.steps[6].metrics == kept.steps[7].metrics


def test_what_is_overwritten_after_a_checkpoint_was_loaded():
    """The numbers of the steps say nothing then; the rows are counted, and that of the checkpoint with them."""
    opt = optimizer()
    saved = copy.deepcopy(opt.state_dict())
    recorder, kept = recorded(opt, capacity=8)
    for _ in range(2):
        step(opt)
    opt.load_state_dict(saved)
    for _ in range(13):
        replay(opt, recorder)
    with pytest.warns(RuntimeWarning, match="6 steps were lost"):
        recorder.drain()
    assert kept.numbers == [1, 2, *range(6, 14)]
    recorder.close()
