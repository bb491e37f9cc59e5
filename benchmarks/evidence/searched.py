"""A run whose learning rate AutoLRS finds: a warm-up, then trials and training, in as many steps as all others have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from greedylr_fused import FusedAdamW
from greedylr_fused.autolrs import AutoLRS, run

RANGE = 10.0  # from a tenth of the LR that it is given to ten times that: two decades, as in the authors' example
SHORTEST, LONGEST = 4, 100  # steps of a trial of the first stage: the least that it takes, and the paper's


def search(lr: float, steps: int, seed: int) -> AutoLRS:
    """One stage, half of which is its ten trials, where the paper's lengths do not fit; the ratios are the paper's."""
    trial = max(SHORTEST, min(LONGEST, steps // 20))
    lengths = dict(trial_steps=trial, stage_steps=10 * trial, max_stage_steps=80 * trial)
    return AutoLRS(lr / RANGE, lr * RANGE, **lengths, total_steps=steps, seed=seed)


def train(
    model: nn.Module, optimizer: FusedAdamW, found: AutoLRS, lr: float, warmup: int, one: Callable[[], Tensor]
) -> None:
    """All steps of a run. Batches go on, as in the authors' code: a trial does not give its own back.

    Args:
        model: is kept before, and restored after each trial, as the optimizer's state is.
        optimizer: without a schedule.
        found: the search, of all steps but the warm-up.
        lr: at the end of the warm-up.
        warmup: steps.
        one: makes a step, and returns its loss.
    """
    for step in range(warmup):
        optimizer.set_lr(lr * (step + 1) / warmup)
        one()
    kept: dict[str, Any] = {}

    def save() -> None:
        kept.update(copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))

    def restore() -> None:
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(copy.deepcopy(kept["optimizer"]))

    def steps(rate: float, count: int) -> list[Tensor]:
        optimizer.set_lr(rate)
        return [one() for _ in range(count)]

    def never() -> float:
        raise RuntimeError("autolrs: expected trials that are compared by training losses; lower LONGEST")

    run(found, save=save, restore=restore, train=steps, evaluate=never)
