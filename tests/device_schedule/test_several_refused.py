"""What a DeviceSchedule over several optimizers refuses at construction."""

import re

import pytest
import torch

from greedylr_fused import DeviceSchedule, FusedAdamW, SkipSpikes
from greedylr_fused.schedules import Cosine, GreedyLR, ReduceOnPlateau

STEPS = Cosine(10)


def param(size=3):
    return torch.nn.Parameter(torch.zeros(size))


def sgd(*params, lr=0.1):
    return torch.optim.SGD(params or [param()], lr=torch.tensor(lr))


def fused(lr=0.01, **options):
    return FusedAdamW([param()], lr=torch.tensor(lr), **options)


def one_parameter_in_two():
    shared = param(5)
    return [sgd(shared), sgd(param(), shared)]


def driven_already():
    opt = sgd()
    opt.driver = DeviceSchedule([opt], STEPS)
    return [sgd(), opt]


REFUSED = [
    (list, {}, ValueError, ("at least one optimizer", "an empty sequence")),
    (lambda: [sgd(), torch.nn.Linear(1, 1)], {}, TypeError, ("as optimizer, got a Linear", "list of optimizers")),
    (lambda: [sgd(), fused(schedule=STEPS)], {}, TypeError, ("has its own Cosine", "schedule=None")),
    (lambda: [sgd(), FusedAdamW([param()])], {}, TypeError, ("lr of parameter group 1", "got 0.001")),
    (one_parameter_in_two, {}, ValueError, ("shape (5,) in two",)),
    (driven_already, {}, RuntimeError, ("one per optimizer at a time",)),
    (lambda: [sgd(), fused()], {"ratios": [1.0]}, ValueError, ("each of 2 optimizers", "[1.0]")),
    (lambda: [sgd(), fused()], {"ratios": 0.5}, ValueError, ("each of 2 optimizers", "0.5")),
    (lambda: [sgd(), fused()], {"ratios": [1, -1]}, ValueError, ("> 0", "[1, -1]")),
    (lambda: [sgd(), fused(lr=0.0)], {"ratios": [1, 2]}, ValueError, ("above 0", "of FusedAdamW")),
    (
        lambda: [sgd(), fused()],
        {"schedule": GreedyLR(min_lr=1e-3, max_lr=1.0)},
        ValueError,
        ("0.01 to 10 times that of group 0", "0.1 to 100 times that of group 1", "min_lr_ratio="),
    ),
    (
        lambda: [sgd(), fused(skip_spikes=SkipSpikes())],
        {"schedule": GreedyLR(mode="max")},
        ValueError,
        ('mode="min"', "skip_spikes", 'GreedyLR(mode="max")', "the negative loss"),
    ),
]


@pytest.mark.parametrize(("made", "options", "error", "says"), REFUSED)
def test_refused(made, options, error, says):
    optimizers = made()
    with pytest.raises(error) as caught:
        DeviceSchedule(optimizers, **{"schedule": STEPS} | options)
    text = str(caught.value)
    assert re.search("expected .*, got ", text) and all(part in text for part in says), text
    assert len(text.split()) <= 40
    if error is not RuntimeError:  # nothing was taken: these can be driven still
        DeviceSchedule([opt for opt in optimizers if type(opt) is torch.optim.SGD][:1] or sgd(), STEPS)


@pytest.mark.parametrize(
    "schedule",
    [GreedyLR(min_lr=[0.01, 1e-3], max_lr=[1.0, 0.1]), GreedyLR(min_lr_ratio=0.2, max_lr_ratio=3), ReduceOnPlateau()],
)
def test_bounds_in_the_ratio_of_the_lrs(schedule):
    assert DeviceSchedule([sgd(), fused()], schedule).read_lr() == [0.1, 0.01]


def test_a_message_says_where_a_group_was_changed():
    first, second = sgd(), fused()
    schedule = DeviceSchedule((first, second), STEPS)
    second.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="in parameter group 1, .*got lr=0.5"):
        schedule.step()
    second.param_groups[0]["lr"] = schedule._driven.lrs[1]
    first.add_param_group({"params": [param()]})
    with pytest.raises(RuntimeError, match="the 2 parameter groups that it had, got one with 3"):
        schedule.step()
    assert repr(schedule).startswith("DeviceSchedule([SGD, FusedAdamW], Cosine(")
