"""A stand-in for a CUDA graph on the CPU, and a training step to capture with it.

It behaves as a graph does for the host: a capture changes no value, and a replay runs the step on the memory of the
capture, gradients included.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.graphs import CapturedStep
from greedylr_fused.graphs import captured_step as graphs
from greedylr_fused.graphs import checks as graph_checks
from support.tensors import generator, parameter

RESTLESS = GreedyLR(patience=0, factor=0.8, window_size=3)


class Body:
    """A training step on a batch, which counts how often Python ran it."""

    def __init__(self, **options):
        random = generator(3)
        self.params = [parameter(torch.randn(4, 3, generator=random)), parameter(torch.randn(4, generator=random))]
        self.opt = FusedAdamW(self.params, **({"lr": 0.01, "schedule": RESTLESS, "max_grad_norm": 1.0} | options))
        self.runs = 0

    def __call__(self, x, *, scale=1.0):
        self.runs += 1
        weight, bias = self.params
        loss = (torch.nn.functional.linear(x["inputs"], weight, bias) * scale).square().mean()
        loss.backward()
        self.opt.step(loss=loss)
        return loss.detach(), {"batch": len(x["inputs"])}


class StandIn:
    """In the place of `Graph`. A test sets what is stepped in it."""

    optimizer: FusedAdamW | DeviceSchedule

    def __init__(self, pool, side):
        self.pool = pool
        self.optimizers = getattr(self.optimizer, "optimizers", (self.optimizer,))

    def groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def params(self):
        return [param for group in self.groups() for param in group["params"]]

    def tensors(self):
        """All that a step writes to."""
        states = [t for optimizer in self.optimizers for own in optimizer.state.values() for t in own.values()]
        lrs = [group["lr"] for group in self.groups() if isinstance(group["lr"], torch.Tensor)]
        deciders = {self.optimizer, *(opt for opt in self.optimizers if isinstance(opt, FusedAdamW))}
        return [*self.params(), *states, *lrs, *(decider._control.vector for decider in deciders)]

    def capture(self, run):
        self.run = run
        before = [(tensor, tensor.detach().clone()) for tensor in self.tensors()]
        self.result = run()
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)
        self.grads = {param: param.grad for param in self.params()}
        return self.result

    def replay(self):
        found = {param: param.grad for param in self.grads}
        for optimizer in self.optimizers:
            optimizer.zero_grad = lambda: None  # the graph's memory is written to again
        for param, grad in self.grads.items():
            param.grad = None if grad is None else grad.zero_()
        result = self.run()
        for optimizer in self.optimizers:
            del optimizer.zero_grad
        for param, grad in found.items():
            param.grad = grad
        for own, new in zip(*map(pytree.tree_leaves, (self.result, result)), strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(new)


class NoStream:
    """In the place of `SideStream`."""

    def __init__(self, device):
        self.stream = SimpleNamespace(device=device)

    def run(self, step):
        return step()


@pytest.fixture
def standing_in(monkeypatch):
    monkeypatch.setattr(graph_checks, "_DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "Graph", StandIn)
    monkeypatch.setattr(graphs, "SideStream", NoStream)


@pytest.fixture
def twins(standing_in):
    """An eager training, and one whose next step is a replay."""
    eager, ours = Body(), Body()
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=2)
    for i in range(3):
        step(batch(i))
        stepped(eager, batch(i))
    assert step.captured and ours.runs == 4  # two eager ones, the capture, its first replay
    return eager, ours, step


def batch(i, rows=5):
    return {"inputs": torch.randn(rows, 3, generator=generator(100 + i))}


def stepped(body, inputs, **options):
    body.opt.zero_grad()
    return body(inputs, **options)
