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
from greedylr_fused.step.mirror import Metrics
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config
from data import Batches, Corpus, held_out_batches
from engine import Ranks, load_whole_state, whole_state
from model import GPT, hidden_matrices, parameter_groups
from muon import MuonAndFused
from unfused import UnfusedAdamW

WARM_UP = 3  # steps not timed: state is allocated, code is loaded
RECENT = 20  # steps in the speed of the progress line
HELD_OUT_WINDOWS = 64


class Trainer:
    """Trains one model.

    Args:
        name: "fused", "torch" or "muon+fused", the optimizer.
        config: the run's options; two trainers of one config start from the same bits and see the same batches.
        corpus: the text.
        ranks: this process among those that train the model.
    """

    def __init__(self, name: str, config: Config, corpus: Corpus, ranks: Ranks) -> None:
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.name, self.config, self.ranks = name, config, ranks
        self.device = torch.device(config.device)
        self.model = ranks.wrap(GPT(config.shape).to(self.device), self.device)
        torch.manual_seed(config.seed + ranks.rank)  # other random numbers, should the model draw any
        self.optimizer = build_optimizer(name, self.model, config)
        self.batches = Batches(corpus.train, config.batch, config.context, config.seed, self.device, ranks.share)
        self._held_out = corpus.held_out
        self.steps = 0
        self.metrics: Metrics = self.optimizer.metrics()
        self.skipped_last = False
        self.told: dict[str, Any] = {}  # what else is to be recorded of the last step
        self._last_good = 0
        self.step_clock, self.optimizer_clock = Clock(self.device), Clock(self.device)
        self._recent: deque[float] = deque(maxlen=RECENT)

    def step(self) -> Metrics:
        """One optimizer step over `accumulate` micro-batches. With the fused optimizer the host waits for nothing."""
        begin = time.perf_counter()
        with self.step_clock.measure():
            count = self.config.accumulate
            losses = [self._backward(last=number == count) for number in range(1, count + 1)]
            with self.optimizer_clock.measure():
                for loss in losses:
                    self.optimizer.observe(loss)
                self.optimizer.step()
            self.optimizer.zero_grad()
        self.steps += 1
        self._take(self._metrics())
        self._recent.append(time.perf_counter() - begin)
        return self.metrics

    def _take(self, metrics: Metrics) -> None:
        committed = metrics.step > self.metrics.step
        if committed and math.isfinite(metrics.loss):
            self._last_good = metrics.step + metrics.skipped
        self.skipped_last = not committed and (self.skipped_last or metrics.skipped > self.metrics.skipped)
        self.metrics = metrics

    def _metrics(self) -> Metrics:
        return self.optimizer.metrics()

    @property
    def spent(self) -> dict[str, int]:
        """Steps by what they were for, where they were not all for one thing."""
        return {}

    @property
    def trying(self) -> bool:
        """Whether the model is one that may be undone, and tells nothing of the run."""
        return self.metrics.phase == "trial"

    @property
    def bad_steps(self) -> int:
        """Steps since the last one with a finite loss and gradient, of those that have arrived from the device."""
        return self.metrics.step + self.metrics.skipped - self._last_good

    def _backward(self, *, last: bool) -> Tensor:
        """Add the gradient of one micro-batch; the loss of this rank's part in nats per byte, 0-d, on the device."""
        with self.ranks.accumulating(self.model, last=last):
            with self._autocast():
                loss = self.model(*self.batches.next())
            (loss / self.config.accumulate).backward()
        return loss.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    @torch.no_grad()
    def held_out_bits(self) -> float:
        """Held-out loss over all ranks in bits per byte. Waits for the device."""
        total, count = torch.zeros(2, dtype=torch.float64, device=self.device)
        config, share = self.config, self.ranks.share
        for tokens, targets, counted in held_out_batches(
            self._held_out, config.batch, config.context, HELD_OUT_WINDOWS, self.device, share
        ):
            with self._autocast():
                total += self.model(tokens, targets).double() * counted
            count += counted
        total, count = self.ranks.total(torch.stack((total, count))).tolist()
        return total / count / math.log(2)

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
        """Everything that a later step depends on, but the random generators of the processes. Every rank takes part;
        only rank 0 gets the tensors.
        """
        whole = whole_state(self.model, self.optimizer)
        return {"steps": self.steps, "batches": self.batches.position(), **whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict()` gave rank 0, under this engine or another."""
        load_whole_state(self.model, self.optimizer, state)
        self.batches.seek(state["batches"])
        self.steps = state["steps"]
        self.metrics = self._metrics()
        self._last_good = self.metrics.step + self.metrics.skipped


def build_optimizer(name: str, model: torch.nn.Module, config: Config) -> Any:
    """One of the three, with the interface of FusedAdamW."""
    groups = parameter_groups(model, config.weight_decay)
    options: dict[str, Any] = dict(lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    options |= dict(schedule=config.lr_schedule, max_grad_norm=1.0)
    if name == "muon+fused":
        return MuonAndFused(groups, hidden_matrices(model), **options)
    return {"fused": FusedAdamW, "torch": UnfusedAdamW}[name](groups, **options)


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
