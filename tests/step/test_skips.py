"""A run that skips step after step says so, once."""

import math
import warnings

import pytest
import torch
from support.lagging import install
from support.tensors import parameter

from greedylr_fused import FusedAdamW, SkipSpikes
from greedylr_fused.step.skips import LIMIT

SAID = "steps in a row were skipped, since each had a NaN or infinite gradient; find its source"


def build(**options):
    return FusedAdamW([parameter(torch.zeros(3), torch.ones(3))], **options)


def steps(opt, count, gradient):
    opt.param_groups[0]["params"][0].grad.fill_(gradient)
    for _ in range(count):
        opt.step()


@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_ten_skips_in_a_row_are_said_once(options, gradient):
    opt = build(**options)
    steps(opt, LIMIT - 1, gradient)
    with pytest.warns(UserWarning, match=f"{LIMIT} {SAID}") as said:
        steps(opt, 1, gradient)
    assert said[0].filename == __file__
    steps(opt, 3 * LIMIT, gradient)
    assert opt.metrics().skipped == 4 * LIMIT


def test_where_snapshots_lag_it_is_said_a_little_later(monkeypatch):
    install(monkeypatch)
    opt = build(max_grad_norm=1.0)
    steps(opt, LIMIT, math.nan)
    with pytest.warns(UserWarning, match=SAID):
        steps(opt, LIMIT, math.nan)


def test_skips_between_steps_are_not_in_a_row():
    opt = build(max_grad_norm=1.0)
    for _ in range(2 * LIMIT):
        steps(opt, LIMIT // 2, math.nan)
        steps(opt, 1, 1.0)


def test_a_gradient_scaler_may_look_for_its_scale():
    opt = build(max_grad_norm=1.0)
    opt.found_inf = torch.ones(())
    steps(opt, 3 * LIMIT, 1.0)
    assert opt.metrics().skipped == 3 * LIMIT


def test_spikes_in_a_row_are_said_to_be_some():
    """A run that diverges: each loss is out of all proportion to those before."""
    opt = build(skip_spikes=SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=1.0))
    opt.step(loss=1.0)
    opt.step(loss=2.0)
    with pytest.warns(
        UserWarning, match=f"{LIMIT} steps in a row were skipped, {LIMIT} of them as spikes: loss or"
    ) as said:
        for power in range(2, LIMIT + 12):
            opt.step(loss=100.0**power)
    assert len(said) == 1 and said[0].filename == __file__
    assert opt.metrics().skipped_spikes == LIMIT + 10


def test_between_spikes_gradients_are_what_is_said():
    opt = build(skip_spikes=SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=1.0))
    for loss in (1.0, 2.0):
        opt.step(loss=loss)
    opt.step(loss=100.0)
    opt.param_groups[0]["params"][0].grad.fill_(math.nan)
    with pytest.warns(UserWarning, match=SAID):
        for _ in range(2 * LIMIT):
            opt.step(loss=2.0)


def test_nothing_is_said_where_nothing_is_skipped():
    opt = build(skip_nonfinite=False, max_grad_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(opt, 3 * LIMIT, math.nan)
    assert opt.metrics().skipped == 0
