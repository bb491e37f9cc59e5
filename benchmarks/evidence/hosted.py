"""A level search that the host decides and copies, after each step: what the package does on the device, to the bit as
long as all gradients are finite, and what it does not: windows paired on the same batches, and other answers to what
the paper of AdaLRS leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.evidence.trainees import Pair, Trainee
from greedylr_fused import FusedAdamW
from greedylr_fused.schedules import Backup, LevelSearch, Phase
from greedylr_fused.schedules.search_spec import SearchSpec


class Paired(SearchSpec):
    """Climb that counts in a control each loss less that of the trial on the same batch."""

    _tried: tuple[float, ...] = ()

    def _decide(self, loss: float) -> None:
        if self.phase is Phase.TRIAL:
            self._tried = (*self._tried[: self.window_step], loss)
        elif self.phase is Phase.CONTROL:  # behind a trial that has failed there is nothing to compare with
            loss -= self._tried[self.window_step] if self.window_step < len(self._tried) else math.nan
        super()._decide(loss)

    def _judge_mean(self, mean: float, var: float) -> None:
        self.kept, self.kept_var = 0.0 * self.kept, 0.0 * self.kept_var  # NaN stays
        super()._judge_mean(mean, var)


class Always(SearchSpec):
    """AdaLRS with a trial after each window, however fast."""

    def _judge_speed(self, speed: float, var: float) -> None:
        self.kept = math.inf
        super()._judge_speed(speed, var)


class Undone(SearchSpec):
    """AdaLRS that puts an undecided trial back."""

    def _judge_trial(self, speed: float, var: float) -> None:
        level = self.level
        super()._judge_trial(speed, var)
        if self.level == level and not math.isnan(self.kept):  # as after a cut
            self.backup = Backup.PUT_BACK


@dataclass(frozen=True)
class Hosted:
    """How the host searches.

    Attributes:
        machine: decides.
        replays: give a control the batches of the trial before it.
    """

    machine: type[SearchSpec] = SearchSpec
    replays: bool = False


class HostSearch:
    """Sets the LR before each step of a run, and copies parameters and moments after it.

    Args:
        how: it searches.
        config: the options.
        trainee: what is trained.
        optimizer: without a schedule.
        lr: peak.
    """

    def __init__(self, how: Hosted, config: LevelSearch, trainee: Trainee, optimizer: FusedAdamW, lr: float) -> None:
        self._machine, self._replays = how.machine(config), how.replays
        self._curve: Sequence[float] = config.base.curve()
        self._trainee, self._optimizer, self._lr = trainee, optimizer, lr
        self._batches: list[Pair] = []
        self._next = self._kept_at = 0
        self._kept: list[Tensor] = []

    def batch(self, step: int) -> Pair:
        """Set the LR of a step; returns its inputs and targets."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * self._machine.multiplier * self._curve[step]
        if self._next == len(self._batches):
            self._batches.append(self._trainee.batch(self._next))
        self._next += 1
        return self._batches[self._next - 1]

    def observe(self, loss: Tensor) -> None:
        """Take the loss of the step that was made. Waits for the device."""
        self._machine.observe(loss.item())
        if self._machine.backup is Backup.TAKE:
            self._kept_at, self._kept = self._next, [own.clone() for own in self._stored()]
        elif self._machine.backup is Backup.PUT_BACK:
            torch._foreach_copy_(self._stored(), self._kept)
            self._next = self._kept_at if self._replays else self._next

    def _stored(self) -> list[Tensor]:
        """Parameters and their state, step counts included."""
        params = [param for group in self._optimizer.param_groups for param in group["params"]]
        return [p.detach() for p in params] + [own for p in params for own in self._optimizer.state[p].values()]
