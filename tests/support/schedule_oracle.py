"""Schedulers of transformers and torch as oracles of the step schedules: objects that drive a real optimizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

from greedylr_fused.schedules import StepSchedule


def upstream_lrs(scheduler: Callable[..., Any], steps: int, lr: float, **options: Any) -> list[float]:
    """The LR that each of `steps` steps uses, `scheduler.step()` following every `optimizer.step()`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    driver = scheduler(optimizer, **options)
    lrs = [optimizer.param_groups[0]["lr"]]
    while len(lrs) < steps:
        optimizer.step()
        driver.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def our_lrs(schedule: StepSchedule, steps: int, lr: float) -> list[float]:
    """The same as the device computes it: one product per step, and the last value stays."""
    curve = schedule.curve()
    return [lr * curve[min(t, len(curve) - 1)] for t in range(steps)]


def runs(seed: int, count: int, longest: int = 60) -> Iterator[tuple[random.Random, int, int, float]]:
    """`(generator, total_steps, warmup_steps, peak LR)` of random runs, those at the edges first."""
    rng = random.Random(seed)
    edges = [(1, 0), (1, 1), (2, 1), (7, 0), (7, 1), (7, 6), (7, 7)]
    drawn = [(total, rng.randint(0, total)) for total in (rng.randint(1, longest) for _ in range(count))]
    for total, warmup in edges + drawn:
        yield rng, total, warmup, rng.choice([1.0, 3e-4, 0.1, rng.uniform(1e-6, 2.0)])
