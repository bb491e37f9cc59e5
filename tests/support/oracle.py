"""GreedyLR by transformers as the oracle of the control state, and random problems for it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.optimization import GreedyLR as Upstream

from greedylr_fused import GreedyLR
from greedylr_fused.backends import BACKENDS
from greedylr_fused.control.slots import SLOT, block
from greedylr_fused.control.vector import Control
from greedylr_fused.schedules import LossSchedule, LossSpec
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.table import TensorTable

#: What is compared, in this order, after the LR of every group.
COMPARED = ("best", "good", "bad", "cooldown_left", "warmup_left", "resets_left", "window_sum", "window_count")


@dataclass(frozen=True)
class Case:
    """A configuration with the losses it meets."""

    config: LossSchedule
    lrs: list[float]
    losses: list[float]


_traced: dict[str, list[list[float]]] = {}


def upstream_trace(case: Case) -> list[list[float]]:
    """Of transformers' own, which takes a while: kept for the next backend."""
    if (key := repr(case)) not in _traced:
        _traced[key] = _upstream_trace(case)
    return _traced[key]


def _upstream_trace(case: Case) -> list[list[float]]:
    config, groups = case.config, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in case.lrs]
    names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "warmup", "eps")
    options = {name: getattr(config, name) for name in (*names, "smooth", "window_size", "reset_start")}
    bounds = [config.bounds(lr, g) for g, lr in enumerate(case.lrs)]
    scheduler = Upstream(
        torch.optim.SGD(groups), min_lr=[b[0] for b in bounds], max_lr=[b[1] for b in bounds], **options
    )
    trace = []
    for loss in case.losses:
        scheduler.step(loss)
        s, window = scheduler, scheduler._streaming_avg
        state = [s.best, s.num_good_epochs, s.num_bad_epochs, s.cooldown_counter, s.warmup_counter, s.reset_start]
        state += [window.sum, len(window.values)] if window else [0.0, 0]
        trace.append([*s.get_last_lr(), *map(float, state)])
    return trace


def spec_trace(case: Case, *, told: bool = False) -> list[list[float]]:
    """With what was decided at the end of each row, if it is to be `told`."""
    spec = LossSpec(case.config, case.lrs)
    trace = []
    for loss in case.losses:
        lrs = spec.observe(loss)
        state = [spec.best, spec.good, spec.bad, spec.cooldown_left, spec.warmup_left, spec.resets_left]
        events = [spec.event] if told else []
        trace.append([*lrs, *map(float, (*state, spec.window_sum, len(spec.window), *events))])
    return trace


class Driven:
    """The control step of one backend over a bare control vector: no parameters, so that only control costs time."""

    def __init__(
        self,
        backend: str,
        device: torch.device,
        config: LossSchedule,
        lrs: list[float],
        names: Sequence[str] = COMPARED,
    ) -> None:
        self.control = Control(config, lrs, max_grad_norm=None, skip_nonfinite=False, device=device)
        kind = BACKENDS[backend]
        self.table = TensorTable([], self.control, kind.chunk_size, Copies(), kind.writes_copies)
        self.backend = kind(self.table)
        self.columns = torch.tensor(
            [*range(*block("lr", len(lrs)).indices(2**31)), *(SLOT[name] for name in names)], device=device
        )

    def observe(self, pending: Tensor) -> Tensor:
        """Takes [2]: weighted sum and weight; returns LRs and what is compared."""
        self.control.pending.copy_(pending)
        self.backend.update()
        return self.control.vector[self.columns]


def backend_trace(backend: str, device: torch.device, case: Case, *, told: bool = False) -> list[list[float]]:
    return lr_trace(backend, device, case, (*COMPARED, "event") if told else COMPARED)


def lr_trace(backend: str, device: torch.device, case: Case, names: Sequence[str]) -> list[list[float]]:
    """The LRs and these slots after every loss."""
    driven = Driven(backend, device, case.config, case.lrs, names)
    pending = torch.tensor([[x, 1.0] for x in case.losses], dtype=torch.float64, device=device)
    return torch.stack([driven.observe(row) for row in pending]).tolist()


def assert_same_trace(got: list[list[float]], want: list[list[float]], case: Case) -> None:
    """Bit for bit; of the control values none is NaN."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a == b, f"observation {i} of {case.losses[: i + 1][-5:]}: {a} != {b}; {case.config}, lr={case.lrs}"


def random_losses(rng: random.Random, n: int) -> list[float]:
    """One of several characters, since uniform noise alone rarely leaves the branch it is in."""
    kind = rng.randrange(6)
    level, slope, noise = rng.choice((1e-3, 1.0, 3.0, 1e4)), rng.uniform(-0.01, 0.02), rng.choice((0.0, 0.01, 0.5))
    losses = []
    for i in range(n):
        trend = level * math.exp(-slope * (i % 200))
        x = trend * (1 + noise * rng.gauss(0, 1))
        if kind == 1:
            x = float(rng.randrange(-3, 4))  # many ties
        elif kind == 2:
            x = level if rng.random() < 0.9 else x  # a plateau
        elif kind == 3:
            x = x * 1e6 if rng.random() < 0.02 else x  # spikes
        elif kind == 4:
            x = -x  # negative: relative margins are inverted
        losses.append(float(x))
    return losses


def random_case(rng: random.Random, n: int) -> Case:
    n_groups = rng.randrange(1, 4)
    lrs = [10 ** rng.uniform(-6, 0) for _ in range(n_groups)]
    low, high = rng.choice((0.0, 0.05, 0.3, 0.9, 1.0)), rng.choice((1.0, 1.5, 4.0, 1e3))

    def bound(ratio: float):
        if ratio in (0.05, 4.0):
            return None
        return [lr * ratio for lr in lrs] if n_groups > 1 or rng.random() < 0.5 else lrs[0] * ratio

    config = GreedyLR(
        mode=rng.choice(("min", "max")),
        factor=rng.choice((0.95, 0.5, 0.8, 0.999, rng.uniform(0.01, 0.99))),
        patience=rng.choice((0, 0, 1, 2, 10)),
        threshold=rng.choice((0.0, 1e-6, 0.01, 0.3)),
        threshold_mode=rng.choice(("abs", "rel")),
        cooldown=rng.choice((0, 0, 1, 3, 7)),
        warmup=rng.choice((0, 0, 1, 3, 7)),
        min_lr=bound(low),
        max_lr=bound(high),
        eps=rng.choice((0.0, 1e-8, 1e-4)),
        smooth=rng.random() < 0.5,
        window_size=rng.choice((1, 2, 3, 5, 17, 50, 500)),
        reset_start=rng.choice((0, 1, 2, 5, 500)),
    )
    return Case(config, lrs, random_losses(rng, n))


def random_cases(seed: int, steps: int):
    """Cases with that many observations in total; every fifth is long enough to fill the largest window."""
    rng = random.Random(seed)
    index = 0
    while steps > 0:
        n = min(steps, 700 if index % 5 == 4 else 100)
        steps, index = steps - n, index + 1
        yield random_case(rng, n)


def with_nonfinite(rng: random.Random, losses: list[float]) -> list[float]:
    """Losses that are not finite, alone and in runs."""
    result = list(losses)
    while (at := rng.randrange(len(result) * 2)) < len(result):
        run = rng.choice((1, 1, 2, 6))
        result[at : at + run] = [rng.choice((math.nan, math.inf, -math.inf)) for _ in result[at : at + run]]
    return result
