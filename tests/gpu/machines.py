"""Where these tests run: a GPU with each of its backends; and a CPU, where streams and graphs have plain stand-ins, so
that the tests themselves are run on every machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from support.tensors import generator, parameter, spread
from torch import Tensor

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.step.mirror import Metrics

#: Every observation changes the LR, unless it is at a bound or waits.
RESTLESS = GreedyLR(patience=0, factor=0.8, smooth=True, window_size=3)
SIZES = (70_001, 4096, 129, 1)
WARM_UP = 3


@dataclass(frozen=True)
class Machine:
    """A device with one of the backends that run on it."""

    device: torch.device
    backend: str

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def refusing_to_wait(self) -> Iterator[None]:
        """The host must not wait for the device within."""
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if self.on_gpu:
                torch.cuda.set_sync_debug_mode("default")

    def on_another_stream(self) -> contextlib.AbstractContextManager[object]:
        """A stream that has waited for what is under way, and that the current one then waits for."""
        return _another_stream() if self.on_gpu else contextlib.nullcontext()

    def metrics(self, opt: FusedAdamW) -> Metrics:
        """Of the last step: waits until a copy that was asked for after it has arrived."""
        for _ in range(2):
            opt.metrics()
            self.wait()
        return opt.metrics()


@contextlib.contextmanager
def _another_stream() -> Iterator[torch.cuda.Stream]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield side
    torch.cuda.current_stream().wait_stream(side)


class Training:
    """A model with an optimizer and data of its own, the same for the same seed.

    The loss is made of elementwise operations and sums, in an order that does not depend on how they are run: a
    matrix product would be free to choose another algorithm in a graph.

    Args:
        machine: where and with which backend.
        dtypes: of the parameters, each of which there is in every size.
        sizes: elements of the parameters.
        norms: measured at each step for a recorder.
        options: of FusedAdamW.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        dtypes: Sequence[torch.dtype] = (torch.float32,),
        sizes: Sequence[int] = SIZES,
        norms: bool = False,
        **options: object,
    ) -> None:
        self.machine = machine
        self._data = [spread(generator(seed), max(sizes), -1, 0).to(machine.device).float() for seed in range(40)]
        self._input = torch.empty_like(self._data[0])
        start = [spread(generator(50 + i), n, -1, 0).to(machine.device) for i, n in enumerate(sizes)]
        self.params = [parameter(values.to(dtype, copy=True)) for dtype in dtypes for values in start]
        self._grads: list[Tensor] = []
        defaults = {"lr": 0.01, "schedule": RESTLESS, "backend": machine.backend}
        self.opt = FusedAdamW(self.params, **(defaults | options))

    def feed(self, i: int) -> None:
        """Data of step `i`, into the memory that a captured step reads."""
        self._input.copy_(self._data[i % len(self._data)])

    def loss(self) -> Tensor:
        """0-d, float32."""
        errors = (param.float() - self._input[: param.numel()] for param in self.params)
        return torch.stack([error.tanh().square().mean() for error in errors]).mean()

    def body(self) -> None:
        """Forward, backward, update; gradients were cleared before."""
        loss = self.loss()
        loss.backward()
        self.opt.step(loss=loss)

    def step(self, i: int) -> None:
        """One eager step."""
        self.opt.zero_grad()
        self.feed(i)
        self.body()

    def step_in_place(self, i: int) -> None:
        """One eager step with gradients in memory that is this training's own, the same each time."""
        if not self._grads:
            self._grads = [torch.empty_like(param) for param in self.params]
        for param, grad in zip(self.params, self._grads, strict=True):
            param.grad = grad.zero_()
        self.feed(i)
        self.body()

    def captured(self, body: Callable[[], None] | None = None) -> Callable[[int], None]:
        """The step as a graph, captured after `WARM_UP` eager ones; on a CPU the function itself.

        Args:
            body: instead of `self.body`.

        Returns:
            Replays the graph on the data of step `i`.
        """
        body = body or self.body
        with self.machine.on_another_stream():
            for i in range(WARM_UP):
                self.opt.zero_grad()
                self.feed(i)
                body()
        self.opt.zero_grad()  # so that gradients are allocated in the graph's memory
        if self.machine.on_gpu:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                body()
            run = graph.replay
        else:

            def run() -> None:
                self.opt.zero_grad()
                body()

        def replay(i: int) -> None:
            self.feed(i)
            run()

        return replay
