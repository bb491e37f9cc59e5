"""One model, one optimizer, one sequence of batches: a training step, the held-out loss, the state to resume from."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from greedylr_fused import FusedAdamW
from greedylr_fused.mirror import Metrics
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config
from data import Batches, Corpus, held_out_batches
from model import GPT, parameter_groups
from unfused import UnfusedAdamW

OPTIMIZERS: dict[str, Any] = {"fused": FusedAdamW, "torch": UnfusedAdamW}
WARM_UP = 3  # steps not timed: state is allocated, code is loaded
RECENT = 20  # steps in the speed of the progress line
HELD_OUT_WINDOWS = 64


class Trainer:
    """Trains one model.

    Args:
        name: "fused" or "torch", the optimizer.
        config: the run's options; two trainers of one config start from the same bits and see the same batches.
        corpus: the text.
    """

    def __init__(self, name: str, config: Config, corpus: Corpus) -> None:
        torch.manual_seed(config.seed)
        self.name, self.config = name, config
        self.device = torch.device(config.device)
        self.model = GPT(config.shape).to(self.device)
        self.optimizer = OPTIMIZERS[name](
            parameter_groups(self.model, config.weight_decay),
            lr=config.lr,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            max_grad_norm=1.0,
        )
        self.batches = Batches(corpus.train, config.batch, config.context, config.seed, self.device)
        self._held_out = corpus.held_out
        self.steps = 0
        self.metrics: Metrics = self.optimizer.metrics()
        self.skipped_last = False
        self._last_good = 0
        self.step_clock, self.optimizer_clock = Clock(self.device), Clock(self.device)
        self._recent: deque[float] = deque(maxlen=RECENT)

    def step(self) -> Metrics:
        """One optimizer step over `accumulate` micro-batches. With the fused optimizer the host waits for nothing."""
        begin = time.perf_counter()
        with self.step_clock.measure():
            losses = [self._backward() for _ in range(self.config.accumulate)]
            with self.optimizer_clock.measure():
                for loss in losses:
                    self.optimizer.observe(loss)
                self.optimizer.step()
            self.optimizer.zero_grad()
        self.steps += 1
        self._take(self.optimizer.metrics())
        self._recent.append(time.perf_counter() - begin)
        return self.metrics

    def _take(self, metrics: Metrics) -> None:
        committed = metrics.step > self.metrics.step
        if committed and math.isfinite(metrics.loss):
            self._last_good = metrics.step + metrics.skipped
        self.skipped_last = not committed and (self.skipped_last or metrics.skipped > self.metrics.skipped)
        self.metrics = metrics

    @property
    def bad_steps(self) -> int:
        """Steps since the last one with a finite loss and gradient, of those that have arrived from the device."""
        return self.metrics.step + self.metrics.skipped - self._last_good

    def _backward(self) -> Tensor:
        """Add the gradient of one micro-batch; its loss in nats per byte, 0-d, on the device."""
        with self._autocast():
            loss = self.model(*self.batches.next())
        (loss / self.config.accumulate).backward()
        return loss.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    @torch.no_grad()
    def held_out_bits(self) -> float:
        """Held-out loss in bits per byte. Waits for the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count = 0
        batches = held_out_batches(
            self._held_out, self.config.batch, self.config.context, HELD_OUT_WINDOWS, self.device
        )
        for tokens, targets in batches:
            with self._autocast():
                total += self.model(tokens, targets).double() * tokens.numel()
            count += tokens.numel()
        return total.item() / count / math.log(2)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def recent_tokens_per_second(self) -> float:
        """Training speed over the last `RECENT` steps; 0 before the first."""
        return len(self._recent) * self.config.tokens_per_step / sum(self._recent) if self._recent else 0.0

    def wait(self) -> None:
        """Wait for the device, and count that as this trainer's time."""
        if self.device.type == "cuda" and self._recent:
            begin = time.perf_counter()
            torch.cuda.synchronize(self.device)
            self._recent[-1] += time.perf_counter() - begin

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on, but the random generators of the process."""
        return {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.position(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.seek(state["batches"])
        self.steps = state["steps"]
        self.metrics = self.optimizer.metrics()
        self._last_good = self.metrics.step + self.metrics.skipped


class Clock:
    """Duration of a part of each step.

    On a GPU it is the time between two events of the stream, which includes a stall of the host, if there is one, and
    adds none: events are read in `milliseconds()`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Time the body."""
        begin = self._now()
        yield
        self._spans.append((begin, self._now()))

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> list[float]:
        """One duration per step, without the first few. Waits for the device."""
        if self._on_cuda:
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) for begin, end in self._spans[WARM_UP:]]
        return [1e3 * (end - begin) for begin, end in self._spans[WARM_UP:]]


class HostReads(TorchDispatchMode):
    """Counts how often the host reads a value from a tensor, which on a GPU is a stall."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, counting it if it hands a value to the host."""
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def host_reads_per_step(trainer: Trainer, steps: int = 3) -> float:
    """Host reads in whole training steps, logging included. Trains on: call it last, when everything is saved."""
    with HostReads() as reads:
        for _ in range(steps):
            trainer.step()
    return reads.count / steps
