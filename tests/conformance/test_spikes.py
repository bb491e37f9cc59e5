"""Skipping of spikes on the device: what a skipped step leaves alone, which steps are skipped, and what they need."""

import math
import warnings

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.tensors import assert_same, latest, parameter, snapshot

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.control import spikes_of
from greedylr_fused.control.slots import SLOT

SMALL = SkipSpikes(rolling_interval_length=8, sigma_factor=3.0)
IMPATIENT = GreedyLR(patience=0, factor=0.5, smooth=False)
LEVEL = (2.0, 2.1, 1.9, 2.05, 1.95, 2.0)


def build(backend, device, **options):
    params = [parameter(torch.ones(n, device=device), torch.ones(n, device=device)) for n in (5, 130)]
    options = dict(lr=0.01, amsgrad=True, skip_spikes=SMALL, backend=backend) | options
    return FusedAdamW(params, **options)


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def set_norm(opt, norm):
    """Gradients of this 2-norm."""
    count = sum(param.numel() for param in params_of(opt))
    for param in params_of(opt):
        param.grad.fill_(norm / math.sqrt(count))


def walk(opt, losses=LEVEL, norm=1.0):
    """Steps whose losses and norms vary a little."""
    for i, loss in enumerate(losses):
        set_norm(opt, norm * (1 + 0.01 * (i % 3)))
        opt.step(loss=loss)


#: Slots that a skipped step changes: what was in it, what it counts, and what it adds to the rings.
PASSING = ("grad_sq_sum", "grad_nonfinite", "grad_norm", "grad_multiplier", "skip", "skipped", "spikes", "event")
PASSING += ("grad_scale", "found_inf", "spike_losses", "losses_head", "spike_norms", "norms_head")


def lasting(opt):
    found = snapshot(opt)
    found["control"] = found["control"][: found["control"].numel() - 2 * opt._control.spike_window].clone()
    for name in PASSING:
        found["control"][SLOT[name]] = 0.0
    return found


SCHEDULES = {
    "none": None,
    "step": Cosine(20, warmup_steps=2),
    "loss": IMPATIENT,
    "both": GreedyLR(patience=0, factor=0.5, window_size=3, base=Cosine(20)),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("clips", [None, 0.1])
@pytest.mark.parametrize("what", ["loss", "norm"])
def test_a_spike_leaves_every_bit(backend, device, schedule, clips, what):
    opt = build(backend, device, schedule=schedule, max_grad_norm=clips)
    walk(opt)
    before = lasting(opt)
    set_norm(opt, 3.0 if what == "norm" else 1.0)
    opt.step(loss=2.0 if what == "norm" else torch.tensor(9.0, device=device))
    assert_same(lasting(opt), before)
    found = latest(opt)
    assert (found.step, found.skipped, found.skipped_spikes) == (6, 1, 1)
    assert found.grad_norm == pytest.approx(3.0 if what == "norm" else 1.0, rel=1e-5), "that before clipping"
    set_norm(opt, 1.0)
    opt.step(loss=2.0)
    found = latest(opt)
    assert (found.step, found.skipped, found.skipped_spikes) == (7, 1, 1)
    assert lasting(opt)["step 0"] == 7.0


def test_the_other_side_is_no_spike(backend, device):
    opt = build(backend, device)
    walk(opt)
    set_norm(opt, 1e-3)
    opt.step(loss=-50.0)
    assert latest(opt).skipped == 0 and latest(opt).step == 7


def test_of_a_loss_to_be_maximised_the_bad_side_is_below(backend, device):
    opt = build(backend, device, schedule=GreedyLR(mode="max", patience=0, factor=0.5, smooth=False))
    walk(opt)
    opt.step(loss=50.0)
    assert latest(opt).skipped == 0
    walk(opt, LEVEL * 2)
    opt.step(loss=-50.0)
    assert latest(opt).skipped_spikes == 1
    set_norm(opt, 9.0)
    opt.step(loss=2.0)
    assert latest(opt).skipped_spikes == 2, "a larger norm is worse whatever the loss is"


def test_nothing_is_skipped_before_there_are_enough(backend, device):
    config = SkipSpikes(rolling_interval_length=8, sigma_factor=3.0, minimum=6)
    opt = build(backend, device, skip_spikes=config)
    walk(opt, LEVEL[:5])
    opt.step(loss=100.0)
    assert latest(opt).skipped == 0 and latest(opt).step == 6
    opt.step(loss=1e6)
    assert latest(opt).skipped_spikes == 1


def test_without_variation_nothing_is_a_spike(backend, device):
    """Not either where the mean of equal numbers is rounded to another one, as that of three times .1 is."""
    opt = build(backend, device, skip_spikes=SkipSpikes(rolling_interval_length=7, minimum=3))
    for _ in range(9):
        opt.step(loss=0.1)
    opt.step(loss=5.0)
    assert latest(opt).skipped == 0
    opt.step(loss=50.0)
    assert latest(opt).skipped_spikes == 1, "now the losses vary"


def test_a_shift_of_level_is_followed(backend, device):
    """Skipped values enter: without them every step from here on would be skipped."""
    opt = build(backend, device)
    walk(opt, LEVEL * 2)
    for i in range(20):
        opt.step(loss=10.0 + 0.1 * (i % 3))
    assert 1 <= latest(opt).skipped_spikes <= 3 and latest(opt).step >= 12 + 17


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_spike_and_does_not_enter(backend, device, bad):
    """The gradients decide, by skip_nonfinite; here they are finite."""
    opt = build(backend, device)
    walk(opt)
    opt.step(loss=bad)
    assert latest(opt).skipped == 0 and latest(opt).step == 7
    found = spikes_of(opt._control.vector, 8)
    assert found["losses"] == list(LEVEL) and len(found["norms"]) == 7
    opt.step(loss=9.0)
    assert latest(opt).skipped_spikes == 1


def test_a_gradient_that_is_not_finite_skips_as_such(backend, device):
    """It is on by default, it counts as no spike even beside one, and the loss of the step enters."""
    opt = build(backend, device)
    assert opt.skip_nonfinite and not FusedAdamW(params_of(opt)).skip_nonfinite
    walk(opt)
    params_of(opt)[1].grad[7] = math.nan
    opt.step(loss=9.0)
    assert (latest(opt).skipped, latest(opt).skipped_spikes) == (1, 0)
    found = spikes_of(opt._control.vector, 8)
    assert found["losses"] == [*LEVEL, 9.0] and len(found["norms"]) == 6


def test_the_loss_scale_is_divided_out_of_the_norm(backend, device):
    """A step that GradScaler skips is no spike, and a new scale is none either."""
    opt = build(backend, device)
    walk(opt)
    for scale, found_inf, norm, spikes in ((64.0, 0.0, 64.0, 0), (32.0, 1.0, math.inf, 0), (2.0, 0.0, 6.0, 1)):
        set_norm(opt, norm)
        opt.grad_scale, opt.found_inf = (torch.full((1,), x, device=device) for x in (scale, found_inf))
        opt.step(loss=2.0)
        assert latest(opt).skipped_spikes == spikes
    assert latest(opt).skipped == 2 and latest(opt).step == 7


def test_the_weighted_mean_of_observations_is_judged(backend, device):
    opt = build(backend, device)
    walk(opt)
    opt.observe(torch.tensor(9.0, device=device), weight=1)
    opt.observe(2.0, weight=99)
    opt.step()
    assert latest(opt).skipped == 0
    opt.observe(9.0, weight=torch.tensor(99, device=device))
    opt.observe(2.0)
    opt.step()
    assert latest(opt).skipped_spikes == 1
    opt.step(lambda: torch.tensor(30.0, device=device))
    assert latest(opt).skipped_spikes == 2


def test_to_a_schedule_a_skipped_step_is_no_observation(backend, device):
    """With the spikes left out it decides the same."""
    losses = [*LEVEL, 2.1, 9.0, 2.05, 1.9, 90.0, 1.7, 1.75]
    opt, other = (
        build(backend, device, schedule=IMPATIENT),
        build(backend, device, schedule=IMPATIENT, skip_spikes=None),
    )
    for loss in losses:
        opt.step(loss=loss)
        if loss < 9.0:
            other.step(loss=loss)
    assert latest(opt).skipped_spikes == 2
    assert opt.read_lr() == other.read_lr() and latest(opt).best == latest(other).best
    assert all(map(torch.equal, params_of(opt), params_of(other)))


def test_a_loss_in_the_memory_of_a_parameter_is_judged_as_it_was(backend, device):
    opt = build(backend, device)
    walk(opt)
    params_of(opt)[0].data.fill_(9.0)
    opt.step(loss=params_of(opt)[0][0])
    assert latest(opt).skipped_spikes == 1


def test_the_host_does_not_wait(backend, device, monkeypatch):
    as_of_a_device(monkeypatch)
    opt = build(backend, device, schedule=IMPATIENT, max_grad_norm=1.0)
    walk(opt)
    opt._control.vector.tolist()
    with no_host_read(monkeypatch, [*params_of(opt), opt._control.vector]):
        for loss in (2.0, 9.0):
            opt.step(loss=torch.tensor(loss, device=device))
    assert latest(opt).skipped_spikes == 1


def test_off_it_costs_no_value(backend, device):
    """No ring, and gradients that nobody reads."""
    opt = build(backend, device, skip_spikes=None)
    walk(opt)
    assert opt._control.vector.numel() == build(backend, device)._control.vector.numel() - 2 * 8
    assert math.isnan(latest(opt).grad_norm) and not opt._control.needs_loss


def test_a_step_without_a_loss_names_the_ways_to_give_one(backend, device):
    opt = build(backend, device)
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    for part in ("expected a loss, from which its SkipSpikes decides", "step(loss=loss)", "step(closure)", "observe("):
        assert part in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(loss=1.0)
