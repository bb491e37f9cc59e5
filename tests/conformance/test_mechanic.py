"""Mechanic on every backend: optax's values, a float64 specification for every mix, and what else a step may meet."""

import json
import math

import pytest
import torch
from support import mechanic, tuned
from support.host_reads import as_of_a_device, no_host_read
from support.tensors import assert_same, latest, snapshot
from support.tuned import BF16, F32, F64, I8, MIXES, Tuned64, gradients

from greedylr_fused import Constant, FusedAdamW, GreedyLR, Mechanic, Table

#: One of a chunk and a half and odd length, one of whole groups, small ones.
SHAPES = [(3, 5), (64, 128), (7,), (1,)]


def build(backend, device, mix=(F32, F32, None, None), shapes=SHAPES, **options):
    dtype, _, state_dtype, master = mix
    options = tuned.OPTIONS | {"lr": 1.0, "tuner": Mechanic()} | options
    listed = tuned.params(shapes, dtype, device)
    return FusedAdamW(listed, backend=backend, state_dtype=state_dtype, master_weights=master, **options)


def steps_of(budget):
    return 4 if budget.trajectory < 10 else 25


@pytest.mark.parametrize("name", mechanic.LRS)
@pytest.mark.parametrize("dtype", [F64, F32])
def test_optax(backend, device, budget, name, dtype):
    """With any schedule. What float32 rounds of parameters and offsets is no more than 1e-6 of S while it grows by four
    orders, since the offsets are kept; optax, which recomputes them in float64 here, is at 1e-10 itself.
    """
    kept, x = json.loads(mechanic.ORACLE.read_text())["runs"][name], torch.tensor(mechanic.start(), dtype=dtype)
    listed = [torch.nn.Parameter(x[:12].view(3, 4).to(device)), torch.nn.Parameter(x[12:].to(device))]
    schedule = Table(mechanic.LRS[name])
    opt = FusedAdamW(listed, lr=1.0, backend=backend, schedule=schedule, tuner=Mechanic(), **mechanic.OPTIONS)
    for step in range(1, (5 if budget.trajectory < 10 else 50) + 1):
        now = torch.cat([p.detach().flatten() for p in listed]).double().tolist()
        grad = torch.tensor(mechanic.gradient(now, step - 1), dtype=dtype)
        tuned.give(opt, [grad[:12].view(3, 4), grad[12:]])
        opt.step()
        if str(step) in kept:
            s, slack = latest(opt).tuner_scale, 1e-10 if dtype == F64 else 1e-6
            assert s == pytest.approx(kept[str(step)]["s"], rel=slack)
            now = torch.cat([p.detach().flatten() for p in listed]).double().tolist()
            assert now == pytest.approx(kept[str(step)]["x"], abs=slack)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("mix", MIXES)
def test_every_mix(backend, device, budget, mix, amsgrad):
    """S to what the types round: 1e-6 with float32 moments, of 16 or 8 bits what those lose of each update."""
    dtype, grad_dtype, state_dtype, _ = MIXES[mix]
    if amsgrad and state_dtype == I8:
        pytest.skip("8-bit moments have no largest ones")
    opt = build(backend, device, MIXES[mix], amsgrad=amsgrad)
    like = build("reference", device, MIXES[mix], amsgrad=amsgrad)
    spec = Tuned64(tuned.values(opt))
    for step in range(steps_of(budget)):
        grads = gradients(SHAPES, step, grad_dtype)
        for each in (opt, like):
            tuned.give(each, grads)
            each.step()
        spec.step([torch.view_as_real(g) if g.is_complex() else g for g in grads])
    exact = dtype == F64
    slack = 1e-11 if exact else {I8: 0.2, BF16: 0.05}.get(state_dtype, 2e-6)
    if not amsgrad:
        assert latest(opt).tuner_scale == pytest.approx(spec.scale, rel=slack)
        for ours, truth, start in zip(tuned.values(opt), spec.x, spec.x0, strict=True):
            # what is rounded of x at each step, and of S times the sum of updates, which is below the steps
            unit = 2.0**-15 if MIXES[mix][3] == "int8" else 2.0**-23
            bound = 0 if exact else (truth.abs() + start.abs()) * unit * steps_of(budget)
            assert ((ours - truth).abs() <= slack * spec.scale * steps_of(budget) + bound + 1e-12).all()
    assert latest(opt).tuner_scale == pytest.approx(latest(like).tuner_scale, rel=1e-11 if exact else 1e-4)
    assert latest(opt).tuner_scale > 1e-6


def test_maximize_is_the_same_uphill(backend, device):
    down, up = build(backend, device), build(backend, device, maximize=True)
    for step in range(4):
        grads = gradients(SHAPES, step, F32)
        tuned.give(down, grads)
        tuned.give(up, [-grad for grad in grads])
        down.step()
        up.step()
    for a, b in zip(tuned.values(down), tuned.values(up), strict=True):
        assert torch.equal(a, b)
    assert latest(down).tuner_scale == latest(up).tuner_scale > 1e-6


def test_without_a_gradient_a_parameter_keeps_its_s(backend, device):
    """It is no part of any sum, and moves by its own S when it has a gradient again."""
    opt = build(backend, device, MIXES["f64"])
    spec = Tuned64(tuned.values(opt))
    for step in range(8):
        grads = [g if (step + i) % 3 else None for i, g in enumerate(gradients(SHAPES, step))]
        before = tuned.values(opt)
        tuned.give(opt, grads)
        opt.step()
        spec.step(grads)
        for i, (old, now) in enumerate(zip(before, tuned.values(opt), strict=True)):
            assert torch.equal(old, now) == (grads[i] is None)
        assert latest(opt).tuner_scale == pytest.approx(spec.scale, rel=1e-10)
    for ours, truth in zip(tuned.values(opt), spec.x, strict=True):
        assert torch.allclose(ours, truth, rtol=0, atol=1e-14)
    assert len({float(state["mechanic_s"]) for state in opt.state.values()}) > 1


@pytest.mark.parametrize("mix", ["f32", "bf16+8-codes"])
def test_a_skipped_step_changes_nothing(backend, device, mix):
    """By default with a tuner: NaN gradients, and those in which GradScaler finds one."""
    opt = build(backend, device, MIXES[mix])
    for step in range(3):
        tuned.give(opt, gradients(SHAPES, step, MIXES[mix][1]))
        opt.step()
    before = snapshot(opt, control=False), opt._control.tuned.learned(), latest(opt).tuner_scale
    grads = gradients(SHAPES, 3, MIXES[mix][1])
    grads[1][2, 5] = math.nan
    tuned.give(opt, grads)
    opt.step()
    grads[1][2, 5] = 1.0
    tuned.give(opt, grads)
    opt.grad_scale, opt.found_inf = torch.ones(1, device=device), torch.ones(1, device=device)
    opt.step()
    assert latest(opt).skipped == 2 and latest(opt).step == 3
    assert_same(snapshot(opt, control=False), before[0])
    assert (opt._control.tuned.learned(), latest(opt).tuner_scale) == before[1:]


def test_gradients_count_as_they_are_used(backend, device):
    """Unscaled, exactly so by powers of two, and clipped, in the norm and in all products."""
    plain, scaled, clipped = build(backend, device), build(backend, device), build(backend, device, max_grad_norm=1.0)
    spec = Tuned64(tuned.values(plain))
    for step in range(4):
        grads = gradients(SHAPES, step, F32)
        tuned.give(plain, grads)
        plain.step()
        tuned.give(scaled, [1024 * grad for grad in grads])
        scaled.grad_scale, scaled.found_inf = torch.full((1,), 1024.0, device=device), torch.zeros(1, device=device)
        scaled.step()
        tuned.give(clipped, grads)
        clipped.step()
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        spec.step([g.double() / (norm + 1e-6) for g in grads])
        assert norm > 1
    assert latest(plain).tuner_scale == latest(scaled).tuner_scale > 1e-6
    for a, b in zip(tuned.values(plain), tuned.values(scaled), strict=True):
        assert torch.equal(a, b)
    assert latest(clipped).tuner_scale == pytest.approx(spec.scale, rel=1e-6)


def test_what_is_written_to_a_parameter_stays(backend, device):
    opt, other = build(backend, device, MIXES["f64"]), build(backend, device, MIXES["f64"])
    for step in range(6):
        for each in (opt, other):
            tuned.give(each, gradients(SHAPES, step))
            each.step()
        if step == 2:
            with torch.no_grad():
                opt.param_groups[0]["params"][1].add_(1.0)
    changed, same = tuned.values(opt), tuned.values(other)
    assert torch.allclose(changed[1], same[1] + 1.0, atol=1e-3)


def test_the_loss_moves_the_level_beside_it(backend, device):
    """Two controls in one vector: neither reads the other's values, with a window between blocks and tuner."""
    greedy = GreedyLR(patience=0, factor=0.5, window_size=3, base=Constant(warmup_steps=2))
    opt, alone = build(backend, device, schedule=greedy), build(backend, device, schedule=greedy, tuner=None)
    losses = [3.0, 2.0, 2.5, 4.0, 1.0]
    for step, loss in enumerate(losses):
        for each in (opt, alone):
            tuned.give(each, gradients(SHAPES, step, F32))
            each.step(loss=loss)
        assert opt.read_lr() == alone.read_lr()
    assert latest(opt).tuner_scale > 1e-6 and math.isnan(latest(alone).tuner_scale)


def test_nothing_waits(backend, device, monkeypatch):
    as_of_a_device(monkeypatch)
    opt = build(backend, device, max_grad_norm=1.0)
    tuned.give(opt, gradients(SHAPES, 0, F32))
    opt.step()
    with no_host_read(monkeypatch, [*opt.param_groups[0]["params"], opt._control.vector]):
        opt.step()


def test_nothing_to_update(backend, device):
    opt = build(backend, device)
    opt.step()
    assert latest(opt).step == 1 and latest(opt).tuner_scale == pytest.approx(1e-6)
