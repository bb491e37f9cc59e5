"""Gradients that are not finite, and GradScaler, which finds them itself."""

import math

import pytest
import torch
from support.tensors import (
    assert_same,
    assert_same_bits,
    generator,
    latest,
    parameter,
    set_grad,
    short,
    snapshot,
    spread,
    stepped,
)

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.control.slots import SLOT, SLOTS

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
MIXES = [
    *((t, t, t) for t in (F32, F64, BF16, F16)),
    *((h, g, s) for h in (BF16, F16) for g in (h, F32) for s in (h, F32) if (g, s) != (h, h)),
    (F32, F32, BF16),
    *((F32, h, F32) for h in (BF16, F16)),
]
BAD = [math.nan, math.inf, -math.inf]
#: Slots of the control vector that live within one step or count skipped ones.
PASSING = (
    "event",
    "skipped",
    "grad_sq_sum",
    "grad_nonfinite",
    "grad_scale",
    "found_inf",
    "grad_norm",
    "grad_multiplier",
    "skip",
)


def ids(mix):
    return "-".join(map(short, mix))


def problem(device, mix=(F32,) * 3, seed=1):
    g = generator(seed)
    return [
        parameter(spread(g, n, -1, 0).to(device, mix[0]), spread(g, n, -1, 0).to(device, mix[1]))
        for n in (1000, 129, 7)
    ]


def build(backend, device, mix=(F32,) * 3, **options):
    state_dtype = None if mix[2] == mix[0] else mix[2]
    return FusedAdamW(problem(device, mix), lr=0.01, amsgrad=True, state_dtype=state_dtype, backend=backend, **options)


def params_of(opt):
    return opt.param_groups[0]["params"]


def lasting(opt):
    """All that a skipped step must leave alone, as bits."""
    found = snapshot(opt)
    for name in PASSING:
        found["control"][SLOT[name]] = 0.0
    return found


SCHEDULE = GreedyLR(patience=0, factor=0.5, smooth=True, window_size=3)


@pytest.mark.parametrize(
    ("mix", "bad"),
    [(mix, BAD[i % 3]) for i, mix in enumerate(MIXES)],
    ids=lambda v: ids(v) if isinstance(v, tuple) else str(v),
)
def test_skipped_step_leaves_every_bit(backend, device, mix, bad):
    opt = build(backend, device, mix, skip_nonfinite=True, schedule=SCHEDULE)
    for loss in (3.0, 2.0):
        opt.step(loss=loss)
    before = lasting(opt)
    params_of(opt)[1].grad[128] = bad
    for skipped in (1, 2):
        opt.step(loss=1.0)
        assert_same(lasting(opt), before)
        assert latest(opt).skipped == skipped
        assert latest(opt).step == 2
    params_of(opt)[1].grad[128] = 0.5
    opt.step(loss=1.0)
    assert latest(opt).step == 3 and latest(opt).skipped == 2
    assert lasting(opt)["step 0"] == 3.0
    assert not torch.equal(lasting(opt)["param 2"], before["param 2"])


@pytest.mark.parametrize("at", [(0, 0), (0, 999), (1, 64), (2, 6)])
def test_one_bad_element_anywhere(backend, device, at):
    opt = build(backend, device, skip_nonfinite=True)
    before = None
    opt.step()
    before = lasting(opt)
    params_of(opt)[at[0]].grad[at[1]] = math.nan
    opt.step()
    assert_same(lasting(opt), before)


@pytest.mark.parametrize(
    "options",
    [{"skip_nonfinite": True}, {"max_grad_norm": 1.0}, {"max_grad_norm": 1.0, "skip_nonfinite": True}],
    ids=str,
)
def test_skips(backend, device, options):
    opt = build(backend, device, **options)
    before = [p.detach().clone() for p in params_of(opt)]
    params_of(opt)[0].grad[3] = math.inf
    opt.step()
    for param, old in zip(params_of(opt), before, strict=True):
        assert_same_bits(param, old)
        assert float(opt.state[param]["step"]) == 0.0
    assert latest(opt).skipped == 1


@pytest.mark.parametrize("limit", [None, 1.0])
def test_without_skipping_what_torch_does(backend, device, limit):
    """NaN where torch has NaN, with and without clipping (a NaN norm spoils everything, an infinite one zeroes)."""
    for bad in BAD:
        opt = build(backend, device, skip_nonfinite=False if limit else None, max_grad_norm=limit)
        twins = [parameter(p.detach().clone()) for p in params_of(opt)]
        torchs = torch.optim.AdamW(twins, lr=0.01, amsgrad=True)
        params_of(opt)[1].grad[2] = bad
        for param, twin in zip(params_of(opt), twins, strict=True):
            twin.grad = param.grad.clone()
        if limit:
            torch.nn.utils.clip_grad_norm_(twins, limit)
        opt.step()
        torchs.step()
        for param, twin in zip(params_of(opt), twins, strict=True):
            torch.testing.assert_close(param, twin, equal_nan=True)
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                torch.testing.assert_close(opt.state[param][name], torchs.state[twin][name], equal_nan=True)
        assert latest(opt).skipped == 0 and latest(opt).step == 1


def test_an_infinite_moment_stays_infinite(backend, device):
    """A second moment that overflowed its storage gives updates of zero, not NaN, as in torch."""
    param = parameter(torch.ones(40, dtype=F16, device=device), torch.full((40,), 6e4, dtype=F16, device=device))
    opt = FusedAdamW([param], lr=0.1, betas=(0.9, 0.5), backend=backend)
    for _ in range(3):
        opt.step()
    assert opt.state[param]["exp_avg_sq"].isinf().all()
    assert param.isfinite().all()


def scaler_for(device, scale):
    return torch.amp.GradScaler(device.type, init_scale=scale, growth_interval=1000)


def scaled(opt, scaler):
    """Gradients as a scaled loss leaves them."""
    for param in params_of(opt):
        set_grad(param, (param.grad.double() * scaler.get_scale()).to(param.grad.dtype))


@pytest.mark.parametrize("mix", MIXES, ids=ids)
@pytest.mark.parametrize("limit", [None, 0.1], ids=["", "clip"])
def test_gradscaler_without_unscale(backend, device, mix, limit):
    opt = build(backend, device, mix, max_grad_norm=limit)
    scaler = scaler_for(device, 64.0)
    norm = torch.cat([p.grad.double() for p in params_of(opt)]).norm().item()
    scaler.scale(torch.zeros(1, device=device))
    scaled(opt, scaler)
    kept = [p.grad.clone() for p in params_of(opt)]
    clip = 1.0 if limit is None else limit / (norm + 1e-6)
    stepped(opt, step=lambda: scaler.step(opt), multiplier=clip / 64.0, prepare=lambda g: g / 64 * clip)
    for param, grad in zip(params_of(opt), kept, strict=True):
        assert_same_bits(param.grad, grad, "unscaled gradients are not written back")
    if limit:
        assert latest(opt).grad_norm == pytest.approx(norm, rel=1e-12)
    scaler.update()


@pytest.mark.parametrize("limit", [None, 0.1], ids=["", "clip"])
def test_gradscaler_after_unscale(backend, device, limit):
    opt = build(backend, device, max_grad_norm=limit)
    scaler = scaler_for(device, 64.0)
    norm = torch.cat([p.grad.double() for p in params_of(opt)]).norm().item()
    scaler.scale(torch.zeros(1, device=device))
    scaled(opt, scaler)
    scaler.unscale_(opt)
    clip = 1.0 if limit is None else limit / (norm + 1e-6)
    stepped(opt, step=lambda: scaler.step(opt), multiplier=clip, prepare=lambda g: g * clip)
    scaler.update()
    opt.step()  # and without the scaler: no scale is left over
    assert float(opt._control.slot("grad_scale")) == 1.0


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("mix", [(F32,) * 3, (F16, F16, F32)], ids=ids)
def test_gradscaler_finds_inf(backend, device, mix, limit, unscale):
    if unscale and mix[0] == F16:
        mix = (F32,) * 3  # torch refuses to unscale float16 gradients
    opt = build(backend, device, mix, max_grad_norm=limit, schedule=SCHEDULE)
    opt.step(loss=3.0)
    before = lasting(opt)
    scaler = scaler_for(device, 64.0)
    scaler.scale(torch.zeros(1, device=device))
    params_of(opt)[0].grad[5] = math.inf
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt, loss=1.0)
    scaler.update()
    assert_same(lasting(opt), before)
    assert latest(opt).skipped == 1 and scaler.get_scale() == 32.0
    params_of(opt)[0].grad[5] = 1.0
    opt.step(loss=1.0)
    assert latest(opt).step == 2


@pytest.mark.parametrize("found", [1.0, 2.0, 0.5, -1.0, math.nan])
def test_any_found_inf_but_zero_skips(backend, device, found):
    opt = build(backend, device)
    opt.step()
    before = lasting(opt)
    opt.grad_scale, opt.found_inf = torch.full((1,), 8.0, device=device), torch.tensor([found], device=device)
    opt.step()
    del opt.grad_scale, opt.found_inf
    assert_same(lasting(opt), before)
    opt.step()
    assert latest(opt).step == 2 and latest(opt).skipped == 1


def test_skipped_steps_leave_the_learning_rate_slots(backend, device):
    opt = build(backend, device, skip_nonfinite=True, schedule=SCHEDULE)
    opt.step(loss=1.0)
    lr = opt._control.vector[len(SLOTS) :].clone()
    params_of(opt)[0].grad[0] = math.nan
    for loss in (math.nan, 0.0, 1e9):
        opt.step(loss=loss)
    assert_same_bits(opt._control.vector[len(SLOTS) :], lr)
