"""A FusedAdamW that skips spikes under a DeviceSchedule: it skips its own step, and the schedule goes on."""

import torch
from support.tensors import parameter

from greedylr_fused import DeviceSchedule, FusedAdamW, SkipSpikes
from greedylr_fused.schedules import GreedyLR


def test_it_skips_its_own_step_alone():
    """The schedule sees every loss, as where a gradient scaler skips."""
    params = [parameter(torch.ones(3), torch.ones(3)) for _ in range(2)]
    sgd = torch.optim.SGD(params[:1], lr=torch.tensor(0.1))
    config = SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=3.0)
    fused = FusedAdamW(params[1:], lr=torch.tensor(0.01), skip_spikes=config)
    schedule = DeviceSchedule([sgd, fused], GreedyLR(patience=0, factor=0.5, smooth=False))
    for loss in (2.0, 2.1, 1.9, 9.0):
        before = [param.detach().clone() for param in params]
        lr = schedule.read_lr()
        sgd.step()
        fused.step(loss=loss)
        schedule.step(loss=loss)
    assert not torch.equal(before[0], params[0]) and torch.equal(before[1], params[1])
    assert fused.metrics().skipped_spikes == 1 and schedule.metrics().skipped_spikes == 0
    assert schedule.metrics().step == 4 and schedule.read_lr() == [x / 2 for x in lr]
