"""What DeviceSchedule refuses: optimizers and LRs that it cannot drive, checkpoints and steps that it cannot use."""

import copy
import gc
import re

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from greedylr_fused import DeviceSchedule, FusedAdamW
from greedylr_fused.schedules import AdaLRS, Climb, Constant, Cosine, GreedyLR

GREEDY = GreedyLR(factor=0.7, patience=1, smooth=True, window_size=4)


def optimizer(lrs=(1e-3, 0.02), dtype=torch.float32):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": torch.tensor(lr, dtype=dtype)} for lr in lrs]
    return torch.optim.SGD(groups, lr=torch.tensor(1.0), fused=True)


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    opt = optimizer()
    driver = DeviceSchedule(opt, GREEDY)
    for loss in range(10):
        driver.step(loss=loss % 4)
    before, vector = driver.state_dict(), driver._control.vector.clone()
    damaged = copy.deepcopy(before)
    damaged["control"][1]["level"] = -1.0
    unsmoothed = DeviceSchedule(optimizer(), GreedyLR(patience=1, smooth=False))
    unsmoothed.step(loss=1.0)
    for wrong, says in (
        ({}, "2 parameter groups"),
        (None, "2 parameter groups"),
        ({"control": before["control"][:1]}, "2 parameter groups"),
        ({"control": [{}, {}]}, "an empty"),
        (damaged, "level"),
        (unsmoothed.state_dict(), "smooth"),
    ):
        with pytest.raises(ValueError, match=says):
            driver.load_state_dict(wrong)
        assert torch.equal(driver._control.vector.view(torch.int64), vector.view(torch.int64))
    driver.load_state_dict(before)
    assert repr(driver.state_dict()) == repr(before)


def without_a_tensor():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def with_a_negative_lr():
    opt = optimizer()
    opt.param_groups[1]["lr"].fill_(-1.0)
    return opt


def on_other_devices():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, device="meta"))], lr=torch.tensor(0.1))


def with_a_torch_scheduler():
    opt = optimizer()
    ReduceLROnPlateau(opt)
    LambdaLR(opt, lambda step: 1.0)
    return opt


REFUSED = [
    (without_a_tensor, {}, TypeError, ("lr of parameter group 0", "got 0.1", "lr=torch.tensor(1e-3, device=device)")),
    (with_a_negative_lr, {}, ValueError, ("-1.", "parameter group 1", ">= 0")),
    (lambda: optimizer(dtype=torch.int64, lrs=(1,)), {}, TypeError, ("tensor(1)", "floating-point")),
    (on_other_devices, {}, ValueError, ("one device, that of the parameters (meta)", "got ones on cpu")),
    (lambda: FusedAdamW([torch.nn.Parameter(torch.zeros(1))]), {}, TypeError, ("FusedAdamW(..., schedule=schedule)",)),
    (lambda: torch.nn.Linear(1, 1), {}, TypeError, ("as optimizer, got a Linear",)),
    (with_a_torch_scheduler, {}, RuntimeError, ("torch.optim.lr_scheduler", "del optimizer.step")),
    (optimizer, {"schedule": None}, TypeError, ("None",)),
    (optimizer, {"schedule": GreedyLR}, TypeError, ("GreedyLR(...)",)),
    (
        optimizer,
        {"schedule": GreedyLR(min_lr=0.5, max_lr=1.0, smooth=False)},
        ValueError,
        ("a starting lr from min_lr=0.5", "got 0.001"),
    ),
    (optimizer, {"backend": "fast"}, ValueError, ("'fast'", "auto")),
    (optimizer, {"process_group": 1}, TypeError, ("process_group",)),
]


@pytest.mark.parametrize(("made", "options", "error", "says"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_refused(made, options, error, says):
    opt = made()
    with pytest.raises(error) as caught:
        DeviceSchedule(opt, **{"schedule": Constant()} | options)
    assert re.search("expected .*, got ", str(caught.value)) and all(part in str(caught.value) for part in says)


@pytest.mark.parametrize("kind", [Climb, AdaLRS])
def test_a_search_needs_parameters_to_put_back(kind):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    with pytest.raises(TypeError, match=f"got {kind.__name__}, which puts them back after a trial; write FusedAdamW"):
        DeviceSchedule(sgd, kind(base=Cosine(1000)))


def test_one_schedule_at_a_time():
    opt = optimizer()
    first = DeviceSchedule(opt, Constant())
    with pytest.raises(RuntimeError, match="expected one per optimizer at a time"):
        DeviceSchedule(opt, Constant())
    del first
    gc.collect()
    second = DeviceSchedule(opt, Cosine(10))
    LambdaLR(opt, lambda step: 1.0)
    with pytest.raises(RuntimeError, match="del optimizer.step"):
        second.step()
    del opt.step
    second.step()


def test_mistakes_in_a_step():
    opt = optimizer()
    schedule = DeviceSchedule(opt, GREEDY)
    with pytest.raises(RuntimeError, match="expected a loss, .*got none"):
        schedule.step()
    schedule.observe(1.0)
    with pytest.raises(ValueError, match="more than once"):
        schedule.step(loss=1.0)
    schedule.step()
    for wrong, error in (("1", TypeError), (torch.ones(2), ValueError)):
        with pytest.raises(error):
            schedule.step(loss=wrong)
        with pytest.raises(error):
            schedule.observe(wrong)
    opt.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="in parameter group 0, .*got lr=0.5 written there"):
        schedule.step(loss=1.0)
    schedule.load_state_dict(schedule.state_dict())
    schedule.step(loss=1.0)
    assert schedule.metrics().step == 2
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(schedule)
    with pytest.raises(RuntimeError, match="WSD"):
        schedule.start_decay(3)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(RuntimeError, match="the 2 parameter groups that it had, got one with 3"):
        schedule.step(loss=1.0)
    assert "SGD" in repr(schedule) and "GreedyLR" in repr(schedule)
