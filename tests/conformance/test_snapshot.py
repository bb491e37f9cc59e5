"""The state as the closing kernel writes it into memory that the host maps, here into plain memory."""

import math

import pytest
import torch
from support.tensors import parameter

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.control import vector as control_vector
from greedylr_fused.control.snapshot import Snapshot

RESTLESS = GreedyLR(patience=0, factor=0.5, cooldown=0, warmup=0, window_size=3)
LOSSES = [3.0, 1.0, 2.0, float("nan"), 0.5, 7.0, 8.0]


@pytest.fixture
def mapped(monkeypatch, device, backend):
    if backend == "cpu":
        pytest.skip("its vector is the host's own")
    made = []

    def snapshot(count, device):
        memory = torch.empty(count + 2, dtype=torch.float64, pin_memory=device.type == "cuda")
        made.append(Snapshot(memory, memory.data_ptr()))
        return made[-1]

    monkeypatch.setattr(control_vector, "mapped", snapshot)
    return made


def build(device, backend, groups=1, **options):
    params = [
        {"params": [parameter(torch.ones(5, device=device), torch.ones(5, device=device))]} for _ in range(groups)
    ]
    options = {"schedule": RESTLESS, "max_grad_norm": 1.0, "skip_nonfinite": True} | options
    return FusedAdamW(params, lr=0.1, backend=backend, **options)


def settled(opt):
    """What is shown after all that was enqueued has run."""
    opt.read_lr()
    return opt.metrics(), [group["lr"] for group in opt.param_groups]


@pytest.mark.parametrize("groups", [1, 3, 120])
def test_every_step_is_shown_as_without(mapped, device, backend, groups, monkeypatch):
    if groups == 120 and backend != "cuda":
        pytest.skip("only there a vector may be too long for the chip")
    ours = build(device, backend, groups)
    assert len(mapped) == 1
    monkeypatch.setattr(control_vector, "mapped", lambda count, device: None)
    twin = build(device, backend, groups)
    for step, loss in enumerate(LOSSES):
        for opt in (ours, twin):
            for group in opt.param_groups:
                group["params"][0].grad.fill_(math.inf if step == 2 else 1.0)
            opt.step(loss=torch.tensor(loss, device=device))
        shown = settled(ours)
        assert shown == settled(twin) and shown[0].step + shown[0].skipped == step + 1
        memory = mapped[0].memory.tolist()
        assert memory[0] == memory[-1] == step + 1


def test_a_device_schedule_shows_it_too(mapped, device, backend):
    param = parameter(torch.ones(5, device=device), torch.ones(5, device=device))
    opt = torch.optim.AdamW([param], lr=torch.tensor(0.1, device=device), fused=True)
    schedule = DeviceSchedule(opt, RESTLESS, backend=backend)
    for loss in (1.0, 2.0):
        opt.step()
        schedule.step(loss=torch.tensor(loss, device=device))
    schedule.read_lr()
    assert schedule.metrics().step == 2 and schedule.metrics().lr == tuple(schedule.read_lr())


def test_what_is_being_written_is_left(mapped, device, backend):
    opt = build(device, backend)
    opt.step(loss=1.0)
    before = settled(opt)
    (snapshot,) = mapped
    lr = snapshot.memory[-2]
    lr.mul_(0.5)
    snapshot.memory[-1], snapshot.memory[0] = 2.0, 3.0  # one step was written, and the next has begun to be
    assert settled(opt) == before
    snapshot.memory[0] = 2.0
    assert settled(opt)[1] == [float(lr)] == [before[1][0] / 2]
    lr.mul_(0.5)
    assert settled(opt)[1] == [before[1][0] / 2], "taken once"


def test_an_lr_from_before_the_host_wrote_is_not_shown(mapped, device, backend):
    opt = build(device, backend)
    opt.step(loss=1.0)
    opt.step(loss=2.0)
    (snapshot,) = mapped
    opt.read_lr()
    late = snapshot.memory.clone()
    settled(opt)
    opt.set_lr(0.08)
    late[[0, -1]] = 2.5  # a step from before the write, which the host has not seen yet
    snapshot.memory.copy_(late)
    assert settled(opt)[1] == [0.08]
    opt.step(loss=9.0)
    assert settled(opt)[1] == [0.04]


def test_an_lr_that_was_written_is_shown_at_once(mapped, device, backend):
    """Without another step, which would write the next snapshot."""
    opt = build(device, backend, groups=2)
    opt.step(loss=1.0)
    before = settled(opt)[1]
    opt.param_groups[1]["lr"] = 0.07
    assert opt.read_lr() == [before[0], 0.07]
    assert opt.metrics().lr == (before[0], 0.07)
    opt.set_lr(0.06)
    assert settled(opt) == (opt.metrics(), [0.06, 0.06]) and opt.metrics().lr == (0.06, 0.06)
    assert opt.metrics().step == 1
    opt.step(loss=9.0)
    assert settled(opt)[0].lr == (0.03, 0.03)


def test_what_was_written_before_a_checkpoint_was_loaded_is_forgotten(mapped, device, backend):
    opt = build(device, backend)
    saved = build(device, backend)
    saved.step(loss=1.0)
    state = saved.state_dict()
    for loss in (1.0, 2.0, 3.0):
        opt.step(loss=loss)
    opt.load_state_dict(state)
    assert settled(opt) == settled(saved)
    for other in (opt, saved):
        other.step(loss=9.0)
    assert settled(opt) == settled(saved) and settled(opt)[0].step == 2


def test_it_stays_for_what_a_graph_writes(mapped, device, backend):
    """A graph's replays write to it when the optimizer has another table, or none."""
    opt = build(device, backend)
    opt.step(loss=1.0)
    table = opt._engine.table
    assert table.snapshot is opt._control.snapshot is mapped[0]
    opt._engine.discard()
    opt.step(loss=1.0)
    assert opt._engine.table is not table and opt._engine.table.snapshot is mapped[0]
