"""Clipping folded into the update: as `clip_grad_norm_` and then a step, with the gradients left as they are."""

import math

import pytest
import torch
from support.tensors import (
    FLOATS,
    Measured,
    assert_same,
    assert_same_bits,
    generator,
    latest,
    parameter,
    short,
    snapshot,
    spread,
    stepped,
)

from greedylr_fused import FusedAdamW
from greedylr_fused.backends import BACKENDS

SIZES = (1500, 129, 64, 1)


def problem(device, dtypes=(torch.float32,) * 4, seed=1, low=-2, high=0):
    g = generator(seed)
    return [
        parameter(*(spread(g, n, low, high).to(device, dtype) for _ in range(2)))
        for n, dtype in zip(SIZES, dtypes, strict=True)
    ]


def true_norm(params):
    return math.sqrt(math.fsum(x * x for p in params for x in p.grad.double().flatten().tolist()))


def test_limit_not_reached_gives_the_bits_of_no_clipping(backend, device):
    plain, clipped = (
        FusedAdamW(problem(device), lr=0.01, max_grad_norm=limit, backend=backend) for limit in (None, 1e6)
    )
    for _ in range(3):
        plain.step()
        clipped.step()
    assert_same(snapshot(plain, control=False), snapshot(clipped, control=False))


def test_coefficient_one_gives_the_bits_of_clip_then_step(backend, device):
    params = problem(device)
    twins = problem(device)
    limit = true_norm(params) * 1.5
    folded, plain = (
        FusedAdamW(ps, lr=0.01, max_grad_norm=m, backend=backend) for ps, m in ((params, limit), (twins, None))
    )
    for _ in range(3):
        folded.step()
        torch.nn.utils.clip_grad_norm_(twins, limit)
        plain.step()
    assert_same(snapshot(folded, control=False), snapshot(plain, control=False))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01, 1e-5])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_clip_and_step(backend, device, dtype, share):
    params = problem(device, (dtype,) * 4)
    norm = true_norm(params)
    opt = FusedAdamW(params, lr=0.01, max_grad_norm=share * norm, backend=backend)
    kept = [p.grad.clone() for p in params]
    coefficient = share * norm / (norm + 1e-6)
    stepped(opt, multiplier=coefficient, prepare=lambda grad: grad * coefficient)
    for param, grad in zip(params, kept, strict=True):
        assert_same_bits(param.grad, grad, "the gradient is left as it is")
    assert latest(opt).grad_norm == pytest.approx(norm, rel=1e-13)


def test_clip_then_step_by_torch(backend, device):
    """Against torch's own two calls, over several steps, in float64 where only the order of roundings differs."""
    params, twins = (problem(device, (torch.float64,) * 4) for _ in range(2))
    opt = FusedAdamW(params, lr=0.01, max_grad_norm=0.5, backend=backend)
    torchs = torch.optim.AdamW(twins, lr=0.01)
    for seed in range(5):
        for param, twin, source in zip(params, twins, problem(device, (torch.float64,) * 4, seed), strict=True):
            param.grad, twin.grad = source.grad.clone(), source.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(twins, 0.5)
        opt.step()
        torchs.step()
        assert latest(opt).grad_norm == pytest.approx(norm.item(), rel=1e-13)
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-13, atol=1e-15)


def test_one_norm_over_all_dtypes(backend, device):
    params = problem(device, FLOATS)
    norm = true_norm(params)
    opt = FusedAdamW(params, max_grad_norm=norm / 3, backend=backend)
    coefficient = norm / 3 / (norm + 1e-6)
    stepped(opt, multiplier=coefficient, prepare=lambda grad: grad * coefficient)
    assert latest(opt).grad_norm == pytest.approx(norm, rel=1e-13)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e25),
        (torch.float32, 1e-30),
        (torch.bfloat16, 1e30),
        (torch.float16, 6e4),
        (torch.float16, 1e-7),
    ],
)
def test_norm_of_numbers_whose_squares_leave_float32(backend, device, dtype, size):
    param = parameter(torch.zeros(1000, dtype=dtype, device=device))
    param.grad = torch.full_like(param, size)
    opt = FusedAdamW([param], max_grad_norm=1.0, backend=backend)
    norm = true_norm([param])
    stepped(
        opt,
        multiplier=min(1.0, 1.0 / (norm + 1e-6)),
        prepare=lambda g: g * min(1.0, 1.0 / (norm + 1e-6)),
        measured=Measured(),
    )
    assert latest(opt).grad_norm == pytest.approx(norm, rel=1e-13)
    assert param.isfinite().all() and latest(opt).skipped == 0


def test_norm_over_several_chunks(backend, device):
    chunk = BACKENDS[backend].chunk_size
    param = parameter(torch.zeros(2 * chunk + 5, device=device))
    param.grad = torch.zeros_like(param)
    at = [0, chunk - 1, chunk, 2 * chunk - 1, 2 * chunk, 2 * chunk + 4]
    param.grad[at] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], device=device)
    opt = FusedAdamW([param], max_grad_norm=1e9, backend=backend)
    opt.step()
    assert latest(opt).grad_norm == math.sqrt(sum(4.0**i for i in range(6)))


def test_zero_gradients(backend, device):
    params = problem(device)
    for param in params:
        param.grad = torch.zeros_like(param)
    opt = FusedAdamW(params, max_grad_norm=1e-9, backend=backend)
    stepped(opt)
    assert latest(opt).grad_norm == 0.0


def test_norm_is_nan_where_it_was_not_needed(backend, device):
    opt = FusedAdamW(problem(device), backend=backend)
    opt.step()
    assert math.isnan(latest(opt).grad_norm)
