"""What a step may do to the machine: read nothing back, write nowhere else, and give the same bits each time."""

import math

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.tensors import assert_same, assert_same_bits, generator, latest, parameter, snapshot, spread

from greedylr_fused import WSD, Cosine, FusedAdamW, GreedyLR, ReduceOnPlateau

SCHEDULE = GreedyLR(patience=0, smooth=True, window_size=3, warmup=1, cooldown=1, reset_start=1)


def problem(device, seed=3, sizes=(1500, 129, 1)):
    g = generator(seed)
    return [parameter(*(spread(g, n, -2, 0).to(device, torch.float32) for _ in range(2))) for n in sizes]


def build(params, backend, **options):
    return FusedAdamW(params, lr=0.01, amsgrad=True, schedule=SCHEDULE, max_grad_norm=0.5, backend=backend, **options)


@pytest.mark.parametrize("amp", [False, True])
def test_nothing_is_read_back(backend, device, monkeypatch, amp):
    as_of_a_device(monkeypatch)
    params = problem(device, sizes=(300, 129, 1))
    opt = build(params, backend, skip_nonfinite=True)
    opt._measure_norms()
    losses = [torch.tensor(x, device=device) for x in (3.0, 2.0, 1.0, 5.0, math.nan)]
    opt.step(loss=losses[0])  # builds tables and compiles
    state = [value for values in opt.state.values() for value in values.values()]
    device_side = [*params, *(p.grad for p in params), *state, *losses, opt._control.vector]
    scale, found = torch.full((1,), 2.0, device=device), torch.zeros(1, device=device)
    with no_host_read(monkeypatch, [*device_side, scale, found]):
        for loss in losses:
            if amp:
                opt.grad_scale, opt.found_inf = scale, found
            opt.step(loss=loss)
        opt.observe(losses[0], weight=losses[1])
        opt.observe(losses[1])
        opt.step()
        opt.metrics()
        for param in params:
            param.grad = param.grad.clone()
        opt.step(loss=losses[2])
        opt.zero_grad()
    assert latest(opt).step == 8


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(5, warmup_steps=2),
        WSD(),
        GreedyLR(base=WSD(warmup_steps=1), forget_every=2, smooth=False),
        ReduceOnPlateau(patience=0),
    ],
    ids=str,
)
def test_no_schedule_reads_anything_back(backend, device, monkeypatch, schedule):
    """Neither in steps, nor when an LR is written, nor when a late decay begins."""
    as_of_a_device(monkeypatch)
    params = problem(device, sizes=(30,))
    opt = FusedAdamW(params, lr=0.01, schedule=schedule, backend=backend)
    losses = [torch.tensor(x, device=device) for x in (3.0, 2.0, 1.0, 5.0)]
    opt.step(loss=losses[0])
    control = opt._control
    with no_host_read(monkeypatch, [*params, *losses, control.vector, control.curve.values]):
        for t, loss in enumerate(losses):
            if t == 2 and control.curve.decay_room:
                opt.start_decay(2)
            if t == 3:
                opt.set_lr(0.002)
            opt.step(loss=loss)
            opt.metrics()


def test_the_guard_itself_refuses(device, monkeypatch):
    value = torch.tensor([1.0], device=device)
    for read in (float, bool, lambda t: t.item(), lambda t: t.tolist(), lambda t: t.cpu().numpy()):
        with no_host_read(monkeypatch, [value]), pytest.raises((AssertionError, RuntimeError)):
            read(value)


def run(backend, device, budget, threads=1):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        opt = build(problem(device, sizes=(1500, 129, budget.elements, 1)), backend)
        for step, loss in enumerate((3.0, 2.0)):
            for i, param in enumerate(opt.param_groups[0]["params"]):
                param.grad = spread(generator(10 * step + i), param.numel(), -2, 0).to(device, torch.float32)
            opt.step(loss=loss)
        return snapshot(opt)
    finally:
        torch.set_num_threads(before)


def test_same_inputs_same_bits(backend, device, budget):
    """The norm included: `grad_sq_sum` and `grad_norm` are slots of the control vector."""
    assert_same(run(backend, device, budget), run(backend, device, budget))


def test_same_bits_for_every_number_of_threads(backend, device, budget):
    alone = run(backend, device, budget)
    for threads in (2, 7):
        assert_same(run(backend, device, budget, threads), alone)


@pytest.fixture
def poisoned():
    """Memory from torch.empty and its kin holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_scratch_is_written_before_it_is_read(backend, device, budget, poisoned):
    got = run(backend, device, budget)
    torch.use_deterministic_algorithms(False)
    assert_same(got, run(backend, device, budget))
    assert all(value.isfinite().all() for name, value in got.items() if name != "control")


def test_poisoned_copies_of_views_with_gaps(backend, device, poisoned):
    param = parameter(torch.randn(80, device=device)[::2])
    param.grad = torch.randn(80, device=device)[::2]
    opt = FusedAdamW([param], max_grad_norm=1.0, backend=backend)
    for _ in range(2):
        opt.step()
    assert param.isfinite().all()


BAND = 64  # elements on each side
SENTINEL = -12345.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_guard_bands(backend, device, dtype, shift):
    """Parameters, gradients and moments lie in one allocation, between bands that must stay as they are."""
    sizes = (1, 7, 128, 129, 1021)
    memory = torch.full((5 * (sum(sizes) + (BAND + 16) * len(sizes)) + BAND,), SENTINEL, dtype=dtype, device=device)
    inside = torch.zeros(memory.shape, dtype=torch.bool)
    position = BAND + shift

    def carve(n, values):
        nonlocal position
        view = memory[position : position + n]
        inside[position : position + n] = True
        position += n + BAND
        view.copy_(values)
        return view

    g = generator(1)
    params, states = [], []
    for n in sizes:
        params.append(parameter(carve(n, spread(g, n, -1, 0)), carve(n, spread(g, n, -1, 0))))
        moments = {name: carve(n, torch.ones(n)) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
        states.append({"step": torch.tensor(4.0, device=device)} | moments)
    opt = build(params, backend)
    for param, state in zip(params, states, strict=True):
        opt.state[param] = dict(state)
    before, grads = memory.clone(), [p.grad.clone() for p in params]
    for loss in (3.0, 2.0):
        opt.step(loss=loss)
    assert_same_bits(memory[~inside], before[~inside], "bands")
    for param, grad, state in zip(params, grads, states, strict=True):
        assert_same_bits(param.grad, grad, "gradient")
        assert opt.state[param]["exp_avg"].data_ptr() == state["exp_avg"].data_ptr()
        assert not torch.equal(opt.state[param]["exp_avg"], torch.ones_like(param))


def test_guard_bands_of_the_control_vector(backend, device):
    """The ring and the groups' slots fill the vector to its last element, and no further."""
    opt = build([parameter(torch.randn(5, device=device), torch.randn(5, device=device))], backend)
    opt.step(loss=1.0)
    n = opt._control.vector.numel()
    memory = torch.full((n + 2 * BAND,), SENTINEL, dtype=torch.float64, device=device)
    memory[BAND : BAND + n] = opt._control.vector
    opt._control.vector = memory[BAND : BAND + n]
    opt._restart()
    for loss in (1.0, 2.0, 0.5, 3.0, 3.0, 3.0, 3.0, 3.0):
        opt.step(loss=loss)
    assert (memory[:BAND] == SENTINEL).all() and (memory[BAND + n :] == SENTINEL).all()
    assert latest(opt).step == 9
