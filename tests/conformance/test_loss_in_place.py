"""The loss as a tensor: read where it lies by the kernel that closes the step, without an operation of its own."""

import weakref

import pytest
import torch
from support.tensors import parameter
from torch.utils._python_dispatch import TorchDispatchMode

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR

VALUE = 2.71828
RESTLESS = GreedyLR(patience=0, factor=0.5, window_size=4)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten":
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def build(device, backend, **options):
    param = parameter(torch.ones(40, device=device), torch.ones(40, device=device))
    return FusedAdamW([param], lr=0.1, schedule=RESTLESS, backend=backend, **options)


def seen(opt, loss, **options):
    opt.step(loss=loss, **options)
    return opt.metrics().loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("clips", [None, 1.0])
def test_every_type_and_shape(device, backend, dtype, shape, clips):
    """A view into more is read where it begins, and gradients that it may have do not matter."""
    opt = build(device, backend, max_grad_norm=clips)
    values = torch.full((3,), VALUE, device=device).to(dtype)
    for loss in (values[1].reshape(shape), values[2].reshape(shape).clone().requires_grad_()):
        assert seen(opt, loss) == float(values[0])
    closure = values[0].reshape(shape)
    opt.step(lambda: closure)
    assert opt.metrics().loss == float(values[0]) and opt.metrics().step == 3


OTHERS = {
    "int": lambda device: torch.tensor(3, device=device),
    "bool": lambda device: torch.tensor(True, device=device),
    "float8": lambda device: torch.tensor(3.0, device=device).to(torch.float8_e4m3fn),
    "on the host": lambda device: torch.tensor(3.0),
    "a parameter": lambda device: torch.nn.Parameter(torch.tensor(3.0, device=device)),
    "a number": lambda device: 3.0,
    "negated": lambda device: torch._neg_view(torch.tensor(-3.0, device=device)),
    "expanded": lambda device: torch.tensor([3.0, 3.0], device=device)[:1].expand(1),
    "zeros without memory": lambda device: torch._efficientzerotensor((), device=device),
}


@pytest.mark.parametrize("name", OTHERS)
def test_losses_that_are_not_read_in_place_count_the_same(device, backend, name):
    loss = OTHERS[name](device)
    assert seen(build(device, backend), loss) == float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


@pytest.mark.parametrize("alias", [lambda p: p[0], lambda p: p.data[1:2], lambda p: p.detach()[2]])
def test_an_element_of_a_parameter_is_taken_before_the_update(device, backend, alias):
    opt = build(device, backend)
    (param,) = opt.param_groups[0]["params"]
    for _ in range(2):
        before = float(alias(param.detach()))
        assert seen(opt, alias(param)) == before
        assert float(alias(param.detach())) != before


def test_what_was_observed_before_counts_with_it(device, backend):
    """Nothing of it is left for the next step, and a step that is skipped drops it."""
    opt = build(device, backend, skip_nonfinite=True)
    assert seen(opt, torch.tensor(3.0, device=device)) == 3.0
    opt.observe(torch.tensor(5.0, device=device))
    opt.step()
    assert opt.metrics().loss == 5.0
    (param,) = opt.param_groups[0]["params"]
    param.grad = torch.full_like(param, float("nan"))
    opt.step(loss=torch.tensor(100.0, device=device))
    assert opt.metrics().skipped == 1
    param.grad = torch.ones_like(param)
    assert seen(opt, torch.tensor(1.0, device=device)) == 1.0
    for slot in ("loss_sum", "loss_weight"):
        assert float(opt._control.slot(slot)) == 0.0


def test_one_buffer_for_all_micro_batches(device, backend):
    """`observe` reads the value at its call; `step`, in stream order."""
    opt, buffer = build(device, backend), torch.zeros((), device=device)
    for value in (1.0, 2.0, 6.0):
        buffer.fill_(value)
        opt.observe(buffer)
    buffer.fill_(100.0)
    opt.step()
    assert opt.metrics().loss == 3.0
    buffer.fill_(4.0)
    opt.step(loss=buffer)
    buffer.fill_(7.0)
    assert opt.metrics().loss == 4.0


def test_nothing_keeps_a_loss_and_its_graph(device, backend):
    opt = build(device, backend)
    (param,) = opt.param_groups[0]["params"]
    for _ in range(2):
        loss = param.square().mean()
        opt.step(loss=loss)
        kept = weakref.ref(loss)
        del loss
        assert kept() is None


def test_it_takes_no_operation(device, backend):
    if backend in ("reference", "triton"):
        pytest.skip("made of operations, or of others' launches")
    opt, loss = build(device, backend, max_grad_norm=1.0), torch.tensor(2.0, device=device)
    tokens = torch.tensor(7, device=device)
    opt.step(loss=loss)
    with Operations() as operations:
        opt.step(loss=loss)
        opt.observe(loss)
        opt.observe(loss, weight=tokens)
        opt.step()
        opt.metrics()
    assert not operations.names


def test_a_device_schedule_reads_it_in_place(device, backend):
    param = parameter(torch.ones(4, device=device), torch.ones(4, device=device))
    opt = torch.optim.AdamW([param], lr=torch.tensor(0.1, device=device), fused=True)
    schedule = DeviceSchedule(opt, RESTLESS, backend=backend)
    for dtype in (torch.float32, torch.bfloat16):
        loss = torch.tensor(VALUE, device=device).to(dtype)
        schedule.step(loss=loss)
        assert schedule.metrics().loss == float(loss)
    schedule.step(loss=torch.tensor(3, device=device))
    assert schedule.metrics().loss == 3.0


WEIGHTS = {
    "number": lambda n, device: n,
    "float32": lambda n, device: torch.tensor(n, device=device),
    "bfloat16": lambda n, device: torch.tensor([n], device=device, dtype=torch.bfloat16),
    "int64": lambda n, device: torch.tensor(int(n), device=device),
    "int32": lambda n, device: torch.tensor(int(n), device=device, dtype=torch.int32),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("stepped", [False, True])
def test_the_weighted_mean_is_rounded_as_in_python(device, backend, name, stepped):
    """With a table and without one; weight 0 of a loss that is NaN is nothing."""
    opt = build(device, backend)
    if stepped:
        opt.step(loss=1.0)
    total = weights = 0.0
    for loss, weight in [(0.1, 3.0), (float("nan"), 0.0), (0.7, 5.0), (1e-3, 11.0)]:
        opt.observe(torch.tensor(loss, device=device), WEIGHTS[name](weight, device))
        if weight:
            total += weight * float(torch.tensor(loss))
            weights += weight
    opt.step()
    assert opt.metrics().loss == total / weights


@pytest.mark.parametrize("weight", [0.0, -0.0, 5e-324, 2.0, 1.7e308, 1 / 3])
def test_any_finite_weight(device, backend, weight):
    opt = build(device, backend)
    opt.step(loss=1.0)
    opt.observe(torch.tensor(0.25, device=device, dtype=torch.float64), weight)
    assert opt._control.pending.tolist() == [weight * 0.25, weight]
