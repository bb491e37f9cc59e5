"""One FusedAdamW per device under one DeviceSchedule. A CPU has one device: other backends stand in for the others."""

import itertools

import pytest
import torch
from support import emulated
from support.tensors import generator

from greedylr_fused import DeviceSchedule, FusedAdamW
from greedylr_fused.schedules import WSD, GreedyLR

SCHEDULE = GreedyLR(factor=0.7, patience=0, window_size=3, base=WSD(warmup_steps=2))
LR = 1e-2


class Model:
    """Two parameters for each of several devices, whose optimizer is on one of these backends."""

    def __init__(self, *places, **options):
        values = generator(5)
        self.params = [torch.nn.Parameter(torch.randn(9, generator=values)) for _ in range(4)]
        halves = self.params[:2], self.params[2:]
        # In float64 a tensor holds all bits of what was decided, as the slots of one FusedAdamW do.
        self.optimizers = [
            FusedAdamW(half, lr=torch.tensor(LR, dtype=torch.float64), backend=place, **options)
            for half, place in zip(halves, places, strict=True)
        ]
        self.schedule = DeviceSchedule(self.optimizers, SCHEDULE, backend=places[0])

    def step(self, grads, loss):
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad.clone()
        for optimizer in self.optimizers:
            optimizer.step()
        self.schedule.step(loss=loss)


@pytest.fixture
def with_emulation(monkeypatch):
    """The CUDA backend on CPU tensors, by kernels that are run thread for thread."""
    emulated.install(monkeypatch)


@pytest.mark.parametrize("places", [*itertools.permutations(["cpu", "reference", "cuda"], 2)])
def test_it_is_one_optimizer_over_all(places, with_emulation):
    """To the bit where the step is that backend's: every device decides from one loss, and has one LR."""
    ours, twins = Model(*places), [Model(place, place) for place in places]
    values = generator(6)
    for step in range(12):
        grads = [torch.randn(9, generator=values) for _ in range(4)]
        loss = 4.0 - step / 4 + float(torch.rand((), generator=values))
        for model in (ours, *twins):
            model.step(grads, loss)
        assert len({tuple(model.schedule.read_lr()) for model in (ours, *twins)}) == 1
        assert len(set(ours.schedule.read_lr())) == 1
    assert all(map(torch.equal, ours.params[:2], twins[0].params[:2]))
    assert all(map(torch.equal, ours.params[2:], twins[1].params[2:]))


def test_of_one_fused_adamw_with_the_schedule_in_it():
    """And one norm over all, by clipping before."""
    ours = Model("cpu", "cpu")
    twin = [torch.nn.Parameter(param.detach().clone()) for param in ours.params]
    alone = FusedAdamW(twin, lr=LR, schedule=SCHEDULE)
    values = generator(6)
    for step in range(12):
        grads = [3 * torch.randn(9, generator=values) for _ in range(4)]
        for param, other, grad in zip(ours.params, twin, grads, strict=True):
            param.grad, other.grad = grad.clone(), grad.clone()
        for params in (ours.params, twin):
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in ours.optimizers:
            optimizer.step()
        ours.schedule.step(loss=float(step % 5))
        alone.step(loss=float(step % 5))
        assert ours.schedule.read_lr() == 2 * alone.read_lr()
        assert all(map(torch.equal, ours.params, twin))


def test_the_norms_are_those_of_each_device():
    ours = Model("cpu", "cpu", max_grad_norm=1.0)
    ours.step([torch.full((9,), scale) for scale in (1.0, 1.0, 100.0, 100.0)], 1.0)
    assert [opt.metrics().grad_norm for opt in ours.optimizers] == pytest.approx([18**0.5, 100 * 18**0.5])


def test_lrs_that_are_on_another_device_than_their_parameters():
    there = [torch.nn.Parameter(torch.zeros(2, device="meta"))]
    optimizers = [FusedAdamW([torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(LR))]
    optimizers.append(torch.optim.SGD(there, lr=torch.tensor(LR)))
    with pytest.raises(ValueError, match=r"of the parameters \(meta\), got ones on cpu"):
        DeviceSchedule(optimizers, SCHEDULE)


def test_the_refusal_of_mixed_devices_names_it():
    mixed = [torch.nn.Parameter(torch.zeros(2, device=device)) for device in ("cpu", "meta")]
    for param in mixed:
        param.grad = torch.ones_like(param)
    with pytest.raises(
        RuntimeError, match=r"got ones on cpu, meta; .* under DeviceSchedule\(\[...\], schedule\)"
    ) as said:
        FusedAdamW(mixed).step()
    assert len(str(said.value).split()) <= 40
