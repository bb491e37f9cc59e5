"""A small training whose step, or more, is compiled."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support import generator, parameter

from greedylr_fused import FusedAdamW, GreedyLR

#: Every observation changes the LR, unless it is at a bound.
RESTLESS = GreedyLR(patience=0, factor=0.9, window_size=3)
#: What the compiler makes of the graph: nothing; one without side effects, on copies; C++.
COMPILERS = ["eager", "aot_eager", "inductor"]
STEPS = 100
TRACES_BACKWARD = hasattr(torch._dynamo.config, "trace_autograd_ops")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    with torch.enable_grad():  # an error within a compiled no_grad leaves gradients disabled (torch 2.13)
        yield
    torch._dynamo.reset()


@contextlib.contextmanager
def no_recompile():
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


class Training:
    """Parameters of several shapes and a loss over them, the same for the same seed."""

    def __init__(self, compiler: str | None = None, **options):
        self.params = [parameter(torch.randn(n, generator=generator(n))) for n in (7, 64, 1, 0)]
        self.params.append(parameter(torch.ones(3)))  # never has a gradient
        self.opt = FusedAdamW(self.params, **({"lr": 0.01, "schedule": RESTLESS} | options))
        self.compiler = compiler
        self.compiled = None

    def feed(self, i: int) -> torch.Tensor:
        """Gradients of step i, new ones each time, and its loss."""
        random = generator(1000 + i)
        for param in self.params[:-1]:
            param.grad = torch.randn(param.shape, generator=random)
        return torch.rand((), generator=random)

    def steps(self, begin: int, end: int, body=None) -> list[list[float]]:
        body = body or (lambda loss: self.opt.step(loss=loss))
        if self.compiler is not None and self.compiled is None:
            self.compiled = torch.compile(body, backend=self.compiler, fullgraph=True)
        rates = []
        for i in range(begin, end):
            (self.compiled or body)(self.feed(i))
            rates.append(self.opt.last_lr())
        return rates
