"""DeviceSchedule against the schedulers of transformers and torch, which drive the same optimizer from the host."""

import io
import random

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.oracle import random_losses
from support.schedule_oracle import upstream_lrs
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers.optimization import GreedyLR as Upstream
from transformers.optimization import get_cosine_schedule_with_warmup

from greedylr_fused import DeviceSchedule, FusedAdamW, Muon
from greedylr_fused.device_schedule.checks import starting_lr
from greedylr_fused.schedules import WSD, Cosine, GreedyLR, ReduceOnPlateau

OPTIMIZERS = {
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "SGD fused": (torch.optim.SGD, {"fused": True}),
    "SGD": (torch.optim.SGD, {}),
    "Adagrad fused": (torch.optim.Adagrad, {"fused": True}),
    "NAdam": (torch.optim.NAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "Muon": (Muon, {}),
}
LRS = (1e-3, 0.02)
GREEDY = {"factor": 0.7, "patience": 1, "cooldown": 1, "warmup": 1, "smooth": True, "window_size": 4, "reset_start": 2}


def optimizer(kind="SGD fused", lrs=LRS, dtype=torch.float32):
    """One parameter and one LR tensor per group."""
    factory, options = OPTIMIZERS[kind]
    params = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in lrs]
    for param in params:
        param.grad = torch.ones(2, 2)
    groups = [{"params": [p], "lr": torch.tensor(lr, dtype=dtype)} for p, lr in zip(params, lrs, strict=True)]
    return factory(groups, lr=torch.tensor(1.0), **options)


def losses(n, seed=5):
    return random_losses(random.Random(seed), n)


def trace(opt, schedule, given):
    """The LRs that each step is made with, as the schedule has them; the tensors hold them rounded."""
    tensors, found = [group["lr"] for group in opt.param_groups], []
    for loss in given:
        lrs = schedule.read_lr()
        rounded = [torch.tensor(lr, dtype=own.dtype) for lr, own in zip(lrs, tensors, strict=True)]
        for group, own, expected in zip(opt.param_groups, tensors, rounded, strict=True):
            assert group["lr"] is own and torch.equal(own, expected)
        opt.step()
        schedule.step() if loss is None else schedule.step(loss=loss)
        found.append(lrs)
    assert schedule.get_last_lr() == list(schedule.metrics().lr)
    return found


def host_trace(scheduler, given):
    """The same of a scheduler that is stepped with the loss, from the host."""
    opt = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in LRS])
    driver, found = scheduler(opt), []
    for loss in given:
        found.append([group["lr"] for group in opt.param_groups])
        opt.step()
        driver.step(loss)
    return found


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_trace_is_that_of_transformers(kind):
    given = losses(60)
    bounds = {"min_lr": [5e-4, 0.01], "max_lr": [4e-3, 0.02]}
    opt = optimizer(kind)
    found = trace(opt, DeviceSchedule(opt, GreedyLR(**GREEDY, **bounds)), given)
    assert found == host_trace(lambda host: Upstream(host, **GREEDY, **bounds), given)
    assert len({lrs[0] for lrs in found}) > 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_trace_is_that_of_reduce_lr_on_plateau(mode):
    given = losses(80, seed=6)
    options = {"mode": mode, "factor": 0.5, "patience": 1, "cooldown": 1, "threshold": 0.01}
    opt = optimizer("AdamW fused")
    found = trace(opt, DeviceSchedule(opt, ReduceOnPlateau(**options)), given)
    assert found == host_trace(lambda host: ReduceLROnPlateau(host, **options), given)
    assert len({lrs[0] for lrs in found}) > 2


@pytest.mark.parametrize("kind", ["AdamW fused", "SGD fused"])
def test_the_trace_is_that_of_lambda_lr(kind):
    options = {"num_warmup_steps": 5, "num_training_steps": 20}
    opt = optimizer(kind)
    assert isinstance(get_cosine_schedule_with_warmup(optimizer(), **options), LambdaLR)
    found = trace(opt, DeviceSchedule(opt, Cosine(20, warmup_steps=5)), [None] * 25)
    for group, lr in enumerate(LRS):
        expected = upstream_lrs(get_cosine_schedule_with_warmup, 21, lr, **options)  # which rises again after that
        assert [lrs[group] for lrs in found] == expected + [0.0] * 4
    assert found[0] == [0.0, 0.0]  # the first LR of the warm-up is there before the first step


def test_the_optimizer_steps_with_the_tensors():
    opt = optimizer("SGD fused")
    schedule = DeviceSchedule(opt, Cosine(10))
    param, expected = opt.param_groups[1]["params"][0], torch.zeros(2, 2)
    for _ in range(10):
        expected -= torch.tensor(schedule.read_lr()[1], dtype=torch.float32)  # times a gradient of one: rounded once
        opt.step()
        schedule.step()
        assert torch.equal(param.detach(), expected)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("schedule", [GreedyLR(**GREEDY, base=Cosine(30, warmup_steps=3)), WSD(warmup_steps=3)])
def test_as_fused_adamw_decides(schedule, chosen):
    given = losses(40, seed=7)
    opt = optimizer("AdamW fused")
    driver = DeviceSchedule(opt, schedule, backend=chosen)
    ours = FusedAdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in LRS], schedule=schedule)
    for step, loss in enumerate(given):
        assert driver.read_lr() == ours.read_lr()
        if step == 20 and isinstance(schedule, WSD):
            driver.start_decay(10)
            ours.start_decay(10)
        for own in (driver, ours):
            own.observe(loss, weight=2)
            own.observe(torch.tensor(loss + 1), weight=torch.tensor(1.0))
            own.step()
    assert driver.read_lr() == ours.read_lr()
    assert repr(driver.metrics()) == repr(ours.metrics())  # NaN, where there is one, does not equal itself
    assert isinstance(schedule, GreedyLR) or driver.read_lr() == [0.0, 0.0]


def test_nothing_is_read_back(monkeypatch):
    as_of_a_device(monkeypatch)
    opt = optimizer("AdamW fused")
    schedule = DeviceSchedule(opt, GreedyLR(**GREEDY, base=WSD()))
    given = [torch.tensor(loss, requires_grad=True) for loss in losses(12)]
    opt.step()
    schedule.step(loss=given[0])
    guarded = [schedule._control.vector, *given, *(group["lr"] for group in opt.param_groups)]
    with no_host_read(monkeypatch, guarded):
        for loss in given[1:]:
            opt.step()
            schedule.observe(loss, weight=3)
            schedule.step()
            schedule.step(loss=loss)
        schedule.start_decay(4)
        schedule.step(loss=1.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # PyTorch's own
def test_a_compiled_step_reads_the_tensors_and_is_compiled_once():
    opt = optimizer("SGD")
    schedule = DeviceSchedule(opt, Cosine(6))
    compiled = []

    def compiler(graph, inputs):
        compiled.append(graph)
        return graph.forward

    step, expected = torch.compile(opt.step, backend=compiler), torch.zeros(2, 2)
    for _ in range(6):
        expected -= torch.tensor(schedule.read_lr()[0], dtype=torch.float32)
        step()
        schedule.step()
        assert torch.equal(opt.param_groups[0]["params"][0].detach(), expected)
    assert len(compiled) == 1


def test_groups_that_share_a_tensor_get_their_own():
    shared = torch.tensor(1e-3)
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    opt = torch.optim.SGD([{"params": [p]} for p in params], lr=shared, fused=True)
    assert all(group["lr"] is shared for group in opt.param_groups)
    opt.param_groups[2]["lr"] = shared.view(1)
    schedule = DeviceSchedule(opt, GreedyLR(patience=0, min_lr=[1e-4, 9e-4, 1e-3], smooth=False))
    assert opt.param_groups[0]["lr"] is shared
    for _ in range(9):
        schedule.step(loss=1.0)
    assert [group["lr"].shape for group in opt.param_groups] == [(), (), (1,)]
    assert [group["lr"].item() for group in opt.param_groups] == torch.tensor(schedule.read_lr()).tolist()
    assert len(set(schedule.read_lr())) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_starting_lr_is_the_number_that_was_written(dtype):
    for lr in (1e-3, 3e-4, 0.02, 1.0, 6e-5, 0.0, 2.0**-14):
        found = starting_lr(torch.tensor(lr, dtype=dtype))
        assert torch.tensor(found, dtype=dtype) == torch.tensor(lr, dtype=dtype) and len(repr(found)) <= len(repr(lr))
    opt = optimizer(lrs=(1e-3, 1e-3), dtype=torch.float32)
    assert DeviceSchedule(opt, GreedyLR(max_lr=1e-3, smooth=False)).read_lr() == [
        1e-3,
        1e-3,
    ]  # float32 rounds it to more than that


@pytest.mark.parametrize("order", ["optimizer first", "schedule first"])
def test_a_resumed_run_has_the_same_bits(order):
    schedule = GreedyLR(**GREEDY, base=WSD(warmup_steps=4))
    given = losses(60, seed=8)
    opt = optimizer("AdamW fused")
    driver = DeviceSchedule(opt, schedule)
    trace(opt, driver, given[:30])
    driver.start_decay(20)
    trace(opt, driver, given[30:35])
    file = io.BytesIO()
    torch.save({"optimizer": opt.state_dict(), "schedule": driver.state_dict()}, file)
    params = [group["params"][0].detach().clone() for group in opt.param_groups]
    expected = trace(opt, driver, given[35:])

    again = optimizer("AdamW fused")
    for group, param in zip(again.param_groups, params, strict=True):
        group["params"][0].data.copy_(param)
    resumed = DeviceSchedule(again, schedule)
    tensors = [group["lr"] for group in again.param_groups]
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for part, name in sorted([(again, "optimizer"), (resumed, "schedule")], key=lambda p: p[1] not in order):
        part.load_state_dict(saved[name])
    if order == "schedule first":  # torch's loader has put copies there, which hold the same
        again.step()
        resumed.step(loss=given[35])
        assert resumed.read_lr() == expected[1]
        expected, given = expected[1:], given[1:]
    assert all(group["lr"] is own for group, own in zip(again.param_groups, tensors, strict=True))
    assert trace(again, resumed, given[35:]) == expected
    assert repr(resumed.state_dict()) == repr(driver.state_dict())  # of the NaN in it none equals itself
    for one, other in zip(again.param_groups, opt.param_groups, strict=True):
        assert torch.equal(one["params"][0], other["params"][0])
