"""What a step costs the host: it never waits, keeps nothing, and launches as often however many tensors there are."""

import gc

import pytest
import torch
from machines import RESTLESS, Training
from support.tensors import parameter

from greedylr_fused import FusedAdamW
from greedylr_fused.control import STATE_BEGIN
from greedylr_fused.step import Metrics

STEPS = 20


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("schedule", [None, RESTLESS], ids=["no_schedule", "schedule"])
def test_steps_wait_for_nothing(machine, amp, schedule):
    """Twenty whole steps, with clipping, micro-batches, metrics, LR and loss scale read where they are."""
    training = Training(machine, schedule=schedule, max_grad_norm=0.01, dtypes=(torch.float32, torch.bfloat16))
    opt = training.opt
    scaler = torch.amp.GradScaler(machine.device.type, enabled=amp, init_scale=8.0, growth_interval=3)
    weight = torch.tensor(3.0, device=machine.device)

    def step(i):
        opt.zero_grad()
        training.feed(i)
        loss = training.loss()
        scaler.scale(loss).backward()
        opt.observe(loss, weight=weight)
        opt.observe(loss)
        scaler.step(opt)
        scaler.update()
        return opt.metrics()

    for i in range(3):
        step(i)
    machine.wait()
    with machine.refusing_to_wait():
        seen = [step(i).step for i in range(3, 3 + STEPS)]
        rates = [float(group["lr"]) for group in opt.param_groups]
    assert seen == sorted(seen)
    assert machine.metrics(opt).step == 3 + STEPS
    assert all(0.001 <= lr <= 0.1 for lr in rates)


def test_set_lr_and_tensor_rates_wait_for_nothing(machine):
    training = Training(machine, schedule=None)
    training.step(0)
    rate = torch.tensor(0.02, device=machine.device)
    machine.wait()
    with machine.refusing_to_wait():
        training.opt.set_lr(0.03)
        training.step(1)
        training.opt.param_groups[0]["lr"] = 0.04
        training.step(2)
        training.opt.param_groups[0]["lr"] = rate
        training.step(3)
    assert training.opt.read_lr() == [torch.tensor(0.02).item()]


def test_gradients_allocated_anew_at_every_step(machine):
    """Old ones are held, so that every step has other addresses; the result is that of gradients that stay put."""
    moving, still = (Training(machine, max_grad_norm=0.01) for _ in range(2))
    held = []
    for i in range(2 * STEPS):
        moving.step(i)
        held.append([param.grad for param in moving.params])
        still.opt.zero_grad(set_to_none=i == 0)
        still.feed(i)
        still.body()
    addresses = {grads[0].data_ptr() for grads in held}
    assert len(addresses) == 2 * STEPS
    for a, b in zip(moving.params, still.params, strict=True):
        assert torch.equal(a, b)
    assert moving.opt.read_lr() == still.opt.read_lr()


def test_nothing_grows_in_1000_steps(machine):
    """Neither objects, nor memory of the device, nor pinned memory."""
    training = Training(machine, sizes=(4096, 129, 1), max_grad_norm=0.01)

    def steps(n):
        for i in range(n):
            training.step(i)
            training.opt.metrics()
        machine.wait()
        training.opt.zero_grad()
        gc.collect()
        return len(gc.get_objects()), memory(machine)

    steps(200)
    before = steps(50)
    after = steps(1000)
    assert after[1] == before[1]
    assert after[0] <= before[0] + 20, "objects"  # of the interpreter's and the test's own; not one per step


def memory(machine):
    if not machine.on_gpu:
        return {}
    found = {"device": torch.cuda.memory_allocated()}
    for name, value in torch.cuda.host_memory_stats().items():
        if name.startswith("alloc") and name.endswith("bytes.current"):
            found[name] = value
    return found


def kernels(run):
    """Names of the kernels that `run` launched; copies and fills by the driver are none."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [
        event.name
        for event in on_device
        if not event.is_user_annotation and not event.name.startswith(("Memcpy", "Memset", "Optimizer."))
    ]


def small(gpu, n, dtypes=(torch.float32,), **options):
    """`n` tensors of 64 elements of each dtype, with gradients."""
    made = [torch.randn(64, device=gpu.device).to(dtype) for dtype in dtypes for _ in range(n)]
    params = [parameter(values, torch.randn_like(values)) for values in made]
    return FusedAdamW(params, backend=gpu.backend, **options)


@pytest.mark.parametrize("clip", [None, 1.0], ids=["plain", "clipping"])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.bfloat16)], ids=["one_mix", "two_mixes"])
def test_one_launch_per_mix_of_dtypes(gpu, clip, dtypes):
    """At most two with clipping (some read all gradients in one), whether there are 10 tensors or 10,000."""
    launched = []
    for n in (10, 10_000):
        opt = small(gpu, n, dtypes, max_grad_norm=clip)
        for _ in range(3):
            opt.step()
        launched.append(kernels(opt.step))
    assert launched[0] == launched[1]
    most = len(dtypes) * (1 if clip is None else 2)
    assert len(dtypes) <= len(launched[0]) <= most, launched[0]


def test_the_schedule_launches_the_same_for_every_number_of_tensors(gpu):
    launched = []
    for n in (10, 10_000):
        opt = small(gpu, n, schedule=RESTLESS, max_grad_norm=1.0)
        loss = torch.tensor(1.0, device=gpu.device)
        for _ in range(3):
            opt.step(loss=loss)
        launched.append(kernels(lambda opt=opt, loss=loss: opt.step(loss=loss)))
    assert launched[0] == launched[1]


def test_the_gpu_writes_what_the_host_sees(gpu):
    """After steps, on another stream too, after an LR was written, after replays, and with another table."""
    training = Training(gpu, max_grad_norm=0.01)
    opt = training.opt
    assert opt._control.snapshot is not None, "the driver gave no address for pinned memory"

    def check(steps):
        gpu.wait()
        shown, vector = opt.metrics(), opt._control.vector.tolist()
        assert shown == Metrics.of(vector[STATE_BEGIN:], opt.read_lr()) and shown.step == steps

    for i in range(3):
        training.step(i)
        check(i + 1)
    with gpu.on_another_stream():
        training.step(3)
    check(4)
    opt.set_lr(0.02)
    check(4)
    replay = training.captured()
    gpu.wait()
    before = opt.metrics().step
    for i in range(3):
        replay(i)
        check(before + i + 1)
    opt._engine.discard()
    training.step(0)
    check(before + 4)


def test_a_step_is_two_operations_of_the_device(gpu):
    """With a loss and clipping: the norm, and the update that decides the next LR and shows the host the state."""
    training = Training(gpu, max_grad_norm=0.01)
    for i in range(3):
        training.step(i)
    loss = training.loss().detach()
    gpu.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        training.opt.step(loss=loss)
        gpu.wait()
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_device) == 2, on_device
