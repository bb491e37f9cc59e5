"""A captured step of several optimizers under one DeviceSchedule, with a stand-in for the graph."""

import pytest
import torch
from support.graph_stand_in import RESTLESS, StandIn, standing_in
from support.telemetry import recorded
from support.tensors import assert_same, generator, parameter, snapshot

from greedylr_fused import DeviceSchedule, FusedAdamW, Muon
from greedylr_fused.graphs import CapturedStep

__all__ = ["standing_in"]


class Body:
    """A training step of Muon and FusedAdamW."""

    def __init__(self, skips=()):
        random = generator(3)
        self.params = [parameter(torch.randn(4, 3, generator=random)), parameter(torch.randn(4, generator=random))]
        self.muon = Muon(self.params[:1], lr=torch.tensor(0.02))
        self.adamw = FusedAdamW(self.params[1:], lr=torch.tensor(0.01), max_grad_norm=1.0)
        self.schedule = DeviceSchedule([self.muon, self.adamw], RESTLESS)
        self.skips = skips

    def __call__(self, x):
        loss = torch.nn.functional.linear(x, *self.params).square().mean()
        loss.backward()
        for name in ("muon", "adamw"):
            if name not in self.skips:
                getattr(self, name).step()
        if "schedule" not in self.skips:
            self.schedule.step(loss=loss)
        return loss.detach()

    def zero_grad(self):
        self.muon.zero_grad()
        self.adamw.zero_grad()


def batch(i):
    return torch.randn(5, 3, generator=generator(100 + i))


@pytest.fixture
def twins(standing_in):
    """An eager training, and one whose next step is a replay."""
    eager, ours = Body(), Body()
    StandIn.optimizer = ours.schedule
    step = CapturedStep(ours, ours.schedule, warmup=2)
    for i in range(3):
        stepped(eager, i)
        step(batch(i))
    assert step.captured
    return eager, ours, step


def stepped(body, i):
    body.zero_grad()
    return body(batch(i))


def test_replays_are_training_steps_of_all(twins):
    eager, ours, step = twins
    recorder, kept = recorded(ours.schedule)
    for i in range(3, 12):
        assert torch.equal(step(batch(i)), stepped(eager, i))
        assert ours.schedule.read_lr() == eager.schedule.read_lr()
        assert list(ours.schedule.metrics().lr) == eager.schedule.read_lr()
        assert ours.adamw.metrics() == eager.adamw.metrics()
    for one, other in ((ours.muon, eager.muon), (ours.adamw, eager.adamw)):
        assert_same(snapshot(one, control=False), snapshot(other, control=False))
    recorder.close()
    assert ours.schedule.read_lr()[0] != 0.02 and kept.numbers


def test_the_lr_that_was_decided_reaches_the_slot_of_the_next_replay(twins):
    """The graph copies from no tensor: its optimizer is handed the LR before each replay."""
    _, ours, step = twins
    for i in range(3, 6):
        decided = ours.schedule._driven.lrs[1].item()
        step(batch(i))
        assert ours.adamw._control.lr.tolist() == [decided]


def test_other_optimizers_and_their_gradients_are_told_of(twins):
    _, ours, step = twins
    version = ours.params[0]._version
    step(batch(3))
    assert ours.params[0]._version > version
    ours.muon.param_groups[0]["weight_decay"] = 0.3
    with pytest.raises(RuntimeError, match=r"weight_decay of parameter group 0 changed from 0.1 to 0.3, .*reset\(\)"):
        step(batch(4))
    ours.muon.param_groups[0]["weight_decay"] = 0.1
    step(batch(4))
    ours.params[0].grad = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match=r"gradient of a parameter of shape \(4, 3\)"):
        step(batch(5))
    ours.params[0].grad = None
    step(batch(5))
    ours.schedule.load_state_dict(ours.schedule.state_dict())
    ours.muon.state[ours.params[0]]["momentum_buffer"] = torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match="states or the groups were replaced"):
        step(batch(6))
    step.reset()
    for i in range(7, 10):
        step(batch(i))
    assert step.captured


def test_one_optimizer_of_torch_under_its_schedule(standing_in):
    runs = []
    for captured in (False, True):
        param = parameter(torch.ones(4, 3))
        opt = torch.optim.SGD([param], lr=torch.tensor(0.1), momentum=0.9, fused=True)
        schedule = StandIn.optimizer = DeviceSchedule(opt, RESTLESS)

        def body(x, param=param, opt=opt, schedule=schedule):
            opt.zero_grad()
            loss = torch.nn.functional.linear(x, param).square().mean()
            loss.backward()
            opt.step()
            schedule.step(loss=loss)

        step = CapturedStep(body, schedule, warmup=1) if captured else body
        for i in range(6):
            step(batch(i))
        runs.append((param.detach().clone(), schedule.read_lr()))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1] != [0.1]


@pytest.mark.parametrize("skipped", ["adamw", "schedule"])
def test_a_body_that_leaves_one_out(standing_in, skipped):
    ours = Body(skips=(skipped,))
    StandIn.optimizer = ours.schedule
    step = CapturedStep(ours, ours.schedule, warmup=1)
    step(batch(0))
    with pytest.raises(RuntimeError, match="does not step the optimizer"):
        step(batch(1))


def test_losses_observed_outside_are_refused(twins):
    _, ours, step = twins
    ours.schedule.observe(1.0)
    with pytest.raises(RuntimeError, match="1 observed outside of it"):
        step(batch(3))
    ours.schedule.discard_observed()
    step(batch(3))


def test_a_capture_that_fails_leaves_nothing_pending(standing_in):
    ours = Body()
    StandIn.optimizer = ours.schedule

    def body(x):
        if ours.failing:
            torch.nn.functional.linear(x, *ours.params).sum().backward()
            ours.schedule.observe(torch.tensor(1.0))
            raise ValueError("of the body")
        return ours(x)

    ours.failing, step = False, CapturedStep(body, ours.schedule, warmup=1)
    step(batch(0))
    ours.failing = True
    with pytest.raises(ValueError, match="of the body"):
        step(batch(1))
    assert all(param.grad is None for param in ours.params) and ours.schedule._captures == []
    ours.failing = False
    ours.schedule.discard_observed()  # the stand-in ran it, as no graph would have
    step(batch(1))
    assert step.captured


def test_on_a_cpu_and_on_several_devices(standing_in, monkeypatch):
    ours = Body()
    monkeypatch.setattr("greedylr_fused.graphs.checks._DEVICES", ("cuda",))
    with pytest.raises(RuntimeError, match="parameters on a GPU, .*got ones on cpu"):
        CapturedStep(ours, ours.schedule)
    monkeypatch.setattr("greedylr_fused.graphs.checks._DEVICES", ("cpu", "meta"))
    ours.muon.param_groups[0]["params"] = [torch.nn.Parameter(torch.zeros(2, 2, device="meta"))]
    with pytest.raises(RuntimeError, match="parameters on one GPU, got ones on cpu, meta"):
        CapturedStep(ours, ours.schedule)
