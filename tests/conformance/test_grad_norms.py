"""Norms of the gradients, measured at every step for a recorder: what they are, when, and that nothing else changes."""

import math

import pytest
import torch
from support.tensors import FLOATS, assert_same, generator, latest, parameter, set_grad, short, snapshot, spread

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.backends import BACKENDS
from greedylr_fused.control.slots import SLOT
from greedylr_fused.telemetry import Recorder
from greedylr_fused.tensors.formats import MIXES, DType

DTYPES = {DType.F32: torch.float32, DType.F64: torch.float64, DType.BF16: torch.bfloat16, DType.F16: torch.float16}
SIZES = (1500, 129, 0, 1)


def mixes():
    """All of them, every other one clipped."""
    found = [tuple(DTYPES[dtype] for dtype in mix) for mix in sorted(MIXES) if DTYPES.keys() >= set(mix)]
    limits = (None, 0.1)
    return [pytest.param(mix, limits[i % 2], id="-".join(map(short, mix))) for i, mix in enumerate(found)]


def build(backend, device, mix=(torch.float32,) * 3, sizes=SIZES, norms=True, **options):
    g = generator(1)
    params = [parameter(spread(g, n, -2, 0).to(device, mix[0])) for n in sizes]
    options = {"state_dtype": None if mix[2] == mix[0] else mix[2]} | options
    opt = FusedAdamW(params, lr=0.01, backend=backend, **options)
    give(opt, 0, mix[1])
    if norms:
        recorded(opt)
    return opt


def recorded(opt):
    """The metrics of each step that a recorder was given, `opt.recorder.drain(wait=True)` called."""
    opt.kept = []
    opt.recorder = Recorder(opt, lambda metrics, step: opt.kept.append(metrics), grad_norms=True)
    return opt


def rows(opt):
    """Of each step so far, L2 and L1 norm; NaN where the logger got none."""
    opt.recorder.drain(wait=True)
    return [[metrics.get(name, math.nan) for name in ("grad_norm", "grad_norm_l1")] for metrics in opt.kept]


def give(opt, seed, dtype=torch.float32):
    for i, param in enumerate(opt.param_groups[0]["params"]):
        values = spread(generator(100 * seed + i + 7), param.numel(), -2, 0)
        set_grad(param, values.to(param.device, dtype))


def magnitudes(opt):
    """The absolute values of all elements of all gradients, exactly."""
    grads = [param.grad for group in opt.param_groups for param in group["params"] if param.grad is not None]
    return [abs(x) for grad in grads for x in grad.double().flatten().tolist()]


def assert_norms(row, values, scale=1.0):
    """One row against exact sums: rounded once by every addition and product in float64."""
    exact = (math.sqrt(math.fsum(x * x for x in values)) / scale, math.fsum(values) / scale)
    allowed = (len(values) + 4) * 2.0**-53
    for got, want in zip(row, exact, strict=True):
        assert abs(got - want) <= allowed * want, (row, exact)


@pytest.mark.parametrize(("mix", "limit"), mixes())
def test_rows_are_the_norms(backend, device, mix, limit):
    opt = build(backend, device, mix, max_grad_norm=limit)
    wanted = []
    for step in range(2):
        give(opt, step, mix[1])
        wanted.append(magnitudes(opt))
        opt.step()
    found = rows(opt)
    for row, values in zip(found, wanted, strict=True):
        assert_norms(row, values)
    assert [latest(opt).grad_norm, latest(opt).grad_norm_l1] == found[1]


def test_all_dtypes_and_several_chunks_together(backend, device):
    n = 2 * BACKENDS[backend].chunk_size + 5
    params = []
    for i, (size, dtype) in enumerate(zip((n, 300, 7, 129), FLOATS, strict=True)):
        values = (spread(generator(seed), size, -2, 0).to(device, dtype) for seed in (i, 9 + i))
        params.append(parameter(*values))
    opt = recorded(FusedAdamW(params, backend=backend))
    opt.step()
    assert_norms(rows(opt)[0], magnitudes(opt))


@pytest.mark.parametrize("limit", [None, 0.1], ids=["", "clip"])
def test_measuring_changes_no_other_bit(backend, device, limit):
    """The squares are added up in the same order beside the absolute values."""
    plain, measuring = (
        build(backend, device, norms=norms, max_grad_norm=limit, schedule=GreedyLR(patience=0, smooth=False))
        for norms in (False, True)
    )
    kept = []
    for opt in (plain, measuring):
        for step in range(3):
            give(opt, step)
            opt.step(loss=3.0 - step)
        found = snapshot(opt)
        assert (opt is measuring) == math.isfinite(latest(opt).grad_norm_l1)
        read_for_it = () if limit else ("grad_sq_sum", "grad_norm")
        for name in ("grad_abs_sum", *read_for_it):
            found["control"][SLOT[name]] = 0.0
        kept.append(found)
    assert_same(*kept)


def test_the_bits_do_not_depend_on_the_address(backend, device):
    """Of 16-byte accesses, as they go wide, and of the elements before and after them."""
    found = set()
    for offset in (0, 1, 2, 3, 5):
        opt = build(backend, device, sizes=(1030, 129))
        for param in opt.param_groups[0]["params"]:
            memory = torch.empty(param.numel() + offset, device=device)
            memory[offset:] = param.grad
            param.grad = memory[offset:]
        opt.step()
        found.add(tuple(float(opt._control.slot(name)) for name in ("grad_abs_sum", "grad_sq_sum")))
    assert len(found) == 1


def test_the_bits_do_not_depend_on_threads(backend, device, budget):
    found = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            opt = build(backend, device, sizes=(budget.elements, 129))
            opt.step()
            found.add(float(opt._control.slot("grad_abs_sum")))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_it_begins_where_the_recorder_does_and_goes_on_with_another_group(backend, device):
    opt = build(backend, device, norms=False)
    opt.step()
    assert math.isnan(latest(opt).grad_norm)
    recorded(opt)
    for step in (1, 2):
        give(opt, step)
        opt.step()
        assert_norms(rows(opt)[-1], magnitudes(opt))
        added = parameter(torch.ones(5, device=device), torch.full((5,), 2.0, device=device))
        opt.add_param_group({"params": [added]})
    opt.step()
    assert_norms(rows(opt)[-1], magnitudes(opt))


def test_a_gradient_that_is_not_there_counts_for_nothing(backend, device):
    opt = build(backend, device)
    opt.param_groups[0]["params"][0].grad = None
    opt.step()
    assert_norms(rows(opt)[0], magnitudes(opt))
    for param in opt.param_groups[0]["params"]:
        param.grad = None
    opt.step()
    assert rows(opt)[1] == [0.0, 0.0]


def test_complex_gradients_count_as_their_parts(backend, device):
    """As the 2-norm does; of parts, since the update treats them as numbers of their own."""
    param = parameter(torch.ones(3, dtype=torch.complex64, device=device))
    param.grad = torch.full_like(param, 3 - 4j)
    opt = recorded(FusedAdamW([param], backend=backend))
    opt.step()
    assert_norms(rows(opt)[0], [3.0, 4.0] * 3)


@pytest.mark.parametrize("limit", [None, 0.1], ids=["", "clip"])
def test_a_loss_scale_is_taken_out(backend, device, limit):
    opt = build(backend, device, max_grad_norm=limit)
    scale = 96.0  # no power of two: dividing by it rounds
    opt.grad_scale, opt.found_inf = (torch.full((1,), x, device=device) for x in (scale, 0.0))
    opt.step()
    assert_norms(rows(opt)[0], magnitudes(opt), scale)
    opt.grad_scale.zero_()  # where many steps in a row overflow, it halves until there is nothing left
    opt.found_inf.fill_(1.0)
    opt.step()
    assert math.isnan(latest(opt).grad_norm_l1)


def test_a_skipped_step_shows_what_it_was_skipped_for(backend, device):
    opt = build(backend, device, skip_nonfinite=True)
    for step in range(3):
        give(opt, step)
        if step == 1:
            opt.param_groups[0]["params"][1].grad[128] = math.nan
        opt.step()
    assert latest(opt).skipped == 1 and latest(opt).step == 2
    found = rows(opt)
    assert [math.isfinite(l1) for _, l1 in found] == [True, False, True]
    assert_norms(found[2], magnitudes(opt))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_recorded_as_it_is(backend, device, bad):
    """And the step is taken: to record is not to skip."""
    opt = build(backend, device)
    assert not opt.skip_nonfinite
    opt.param_groups[0]["params"][0].grad[1499] = bad
    opt.step()
    give(opt, 1)
    opt.step()
    found = rows(opt)
    assert latest(opt).step == 2 and latest(opt).skipped == 0
    assert [math.isnan(x) if math.isnan(bad) else x == math.inf for x in found[0]] == [True, True]
    assert_norms(found[1], magnitudes(opt))


def test_squares_that_overflow_leave_the_absolute_values(backend, device):
    param = parameter(torch.ones(10, dtype=torch.float64, device=device))
    param.grad = torch.full_like(param, 1e200)
    opt = recorded(FusedAdamW([param], backend=backend))
    opt.step()
    param.grad = torch.full_like(param, 1e-30)
    opt.step()
    found = rows(opt)
    assert found[0] == [math.inf, pytest.approx(1e201, rel=1e-15)]
    assert_norms(found[1], [1e-30] * 10)


def test_with_observed_losses_and_in_parts(backend, device):
    """As over ranks, where the sums wait for those of the others."""
    whole, parts = (build(backend, device, schedule=GreedyLR(patience=0, smooth=False)) for _ in range(2))
    for opt in (whole, parts):
        opt.step(loss=3.0)
    parts.observe(2.0)
    with torch.no_grad():
        runner = parts._engine.backend
        runner.measure(then_clip=False)
        runner.clip()
        runner.update(then_control=False)
        runner.control()
    whole.step(loss=2.0)
    assert latest(parts) == latest(whole) and latest(whole).grad_norm_l1 > 0
