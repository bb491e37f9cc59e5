"""CapturedStep with real graphs: the bits of eager steps, and what cannot be captured said in words."""

import pytest
import torch
from machines import Training
from support.tensors import assert_same, generator, snapshot

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR, Muon
from greedylr_fused.graphs import CapturedStep

STEPS = 12


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.01}, {"schedule": None}], ids=["plain", "clip", "none"])
def test_calls_are_eager_steps(gpu, options):
    eager, ours = (Training(gpu, **options) for _ in range(2))

    def body(data):
        ours._input = data
        loss = ours.loss()
        loss.backward()
        ours.opt.step(loss=loss)
        return loss.detach()

    step = CapturedStep(body, ours.opt)
    for i in range(STEPS):
        if i == STEPS // 2:
            for training in (eager, ours):
                training.opt.set_lr(0.02)
        eager.step(i)
        loss = step(ours._data[i])
        assert ours.opt.read_lr() == eager.opt.read_lr()
        assert torch.isfinite(loss)
    assert step.captured
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert gpu.metrics(ours.opt).step == STEPS


def test_the_host_waits_for_nothing_in_a_replay(gpu):
    training = Training(gpu)

    def body(data):
        training._input = data
        training.body()

    step = CapturedStep(body, training.opt)
    for i in range(5):
        step(training._data[i])
    with gpu.refusing_to_wait():
        for i in range(5, 9):
            step(training._data[i])


class Pair:
    """A training of Muon and FusedAdamW under one schedule."""

    def __init__(self, gpu):
        values = generator(3)
        shapes = ((48, 32), (48,))
        self.params = [torch.nn.Parameter(torch.randn(s, generator=values).to(gpu.device)) for s in shapes]
        lrs = [torch.tensor(lr, device=gpu.device) for lr in (0.02, 0.01)]
        self.muon = Muon(self.params[:1], lr=lrs[0])
        self.adamw = FusedAdamW(self.params[1:], lr=lrs[1], backend=gpu.backend, max_grad_norm=1.0)
        schedule = GreedyLR(patience=0, factor=0.8, window_size=3)
        self.schedule = DeviceSchedule([self.muon, self.adamw], schedule, backend=gpu.backend)

    def body(self, data):
        loss = torch.nn.functional.linear(data, *self.params).square().mean()
        loss.backward()
        self.muon.step()
        self.adamw.step()
        self.schedule.step(loss=loss)
        return loss.detach()

    def eager_step(self, data):
        self.muon.zero_grad()
        self.adamw.zero_grad()
        return self.body(data)


def test_muon_and_fused_adamw_are_captured_as_one(gpu):
    eager, ours = Pair(gpu), Pair(gpu)
    step = CapturedStep(ours.body, ours.schedule)
    batches = [torch.randn(8, 32, generator=generator(i)).to(gpu.device) for i in range(STEPS)]
    for data in batches[:5]:
        eager.eager_step(data)
        step(data)
    assert step.captured
    with gpu.refusing_to_wait():
        for data in batches[5:]:
            eager.eager_step(data)
            step(data)
    assert ours.schedule.read_lr() == eager.schedule.read_lr() != [0.02, 0.01]
    for one, other in ((ours.muon, eager.muon), (ours.adamw, eager.adamw)):
        assert_same(snapshot(one, control=False), snapshot(other, control=False))


def test_a_body_that_waits_is_refused_in_words(gpu):
    training = Training(gpu)

    def body(data):
        training._input = data
        loss = training.loss()
        loss.backward()
        training.opt.step(loss=loss.item())

    step = CapturedStep(body, training.opt, warmup=1)
    step(training._data[0])
    with pytest.raises(RuntimeError, match=r"(?s)expected a body .*got one that could not be captured.*move .item\(\)"):
        step(training._data[1])


def test_changed_hyper_parameters_are_captured_anew(gpu):
    eager, ours = (Training(gpu) for _ in range(2))

    def body(data):
        ours._input = data
        ours.body()

    step = CapturedStep(body, ours.opt)
    for i in range(STEPS):
        if i == 6:
            for training in (eager, ours):
                training.opt.param_groups[0]["weight_decay"] = 0.5
            with pytest.raises(RuntimeError, match="weight_decay of parameter group 0 changed"):
                step(ours._data[i])
            step.reset()
        eager.step(i)
        step(ours._data[i])
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
