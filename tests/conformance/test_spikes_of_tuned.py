"""A tuner and the skipping of spikes together: the clip decides first, and a skipped step teaches nothing."""

import copy
import pickle

import pytest
import torch
from support.tensors import assert_same, latest, parameter, snapshot

from greedylr_fused import FusedAdamW, Linear, Mechanic, SkipSpikes

SPIKE, LAST = 12, 20


def build(backend, device):
    rng = torch.Generator().manual_seed(7)
    params = [torch.randn(shape, generator=rng).to(device) for shape in ((5, 3), (70,))]
    options = dict(
        tuner=Mechanic(),
        skip_spikes=SkipSpikes(rolling_interval_length=8, minimum=4),
        max_grad_norm=1.0,
        schedule=Linear(30),
    )
    return FusedAdamW([parameter(param) for param in params], lr=1.0, weight_decay=0.1, backend=backend, **options)


def step(opt, number):
    """At `SPIKE` the loss is one; all gradients follow from the number."""
    rng = torch.Generator().manual_seed(number)
    for param in opt.param_groups[0]["params"]:
        param.grad = torch.randn(param.shape, generator=rng).to(param.device)
    opt.step(loss=50.0 if number == SPIKE else 3.0 - 0.01 * number + 0.02 * (number % 3))


def learned(opt):
    return opt._control.tuned.learned()


def test_a_spike_teaches_the_tuner_nothing(backend, device):
    opt = build(backend, device)
    for number in range(SPIKE):
        step(opt, number)
    before, shares = snapshot(opt, control=False), learned(opt)
    step(opt, SPIKE)
    assert_same(snapshot(opt, control=False), before)
    assert learned(opt) == shares and latest(opt).skipped_spikes == latest(opt).skipped == 1
    step(opt, SPIKE + 1)
    assert learned(opt) != shares and latest(opt).skipped == 1


@pytest.mark.parametrize("road", ["state_dict", "pickle", "deepcopy", "group"])
@pytest.mark.parametrize("stop", [SPIKE, SPIKE + 1])
def test_a_run_goes_on_with_both(backend, device, road, stop):
    """Around the spike; a group that comes leaves learners and rings as they are."""
    opt = build(backend, device)
    for number in range(stop):
        step(opt, number)
    if road == "state_dict":
        other = build(backend, device)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        for mine, theirs in zip(other.param_groups[0]["params"], opt.param_groups[0]["params"], strict=True):
            mine.data.copy_(theirs.data)
    else:
        other = pickle.loads(pickle.dumps(opt)) if road == "pickle" else copy.deepcopy(opt)
    if road == "group":
        for one in (opt, other):
            one.add_param_group({"params": [parameter(torch.ones(3, device=device))]})
        assert learned(other) == learned(opt)
    for number in range(stop, LAST):
        step(opt, number)
        step(other, number)
    assert_same(snapshot(other, control=False), snapshot(opt, control=False))  # a loaded ring may begin elsewhere
    assert learned(other) == learned(opt) and latest(other) == latest(opt) and latest(opt).skipped_spikes == 1


def test_what_a_tuner_cannot_move_does_not_join(backend, device):
    opt = build(backend, device)
    with pytest.raises((TypeError, ValueError, RuntimeError), match="master_weights"):
        opt.add_param_group({"params": [parameter(torch.ones(3, device=device, dtype=torch.bfloat16))]})
    assert len(opt.param_groups) == 1
    step(opt, 0)
