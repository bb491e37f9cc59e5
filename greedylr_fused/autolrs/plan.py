"""The options of a search, and how long its stages are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from greedylr_fused.autolrs.forecast import LEAST

#: Validation losses of a trial, about: one every sixteenth of it.
_VALIDATIONS = 16


@dataclass(frozen=True)
class Stage:
    """Lengths of a stage: of each of its trials, and of the training at the LR that is found."""

    trial_steps: int
    stage_steps: int
    validation: bool
    """Forecasts are of validation losses."""

    @property
    def interval(self) -> int:
        """Steps of a trial from one validation loss to the next."""
        return max(1, self.trial_steps // _VALIDATIONS)

    @property
    def horizon(self) -> int:
        """Position of the loss to be foreseen, that of the trial's first loss being 0."""
        return self.stage_steps // self.interval if self.validation else self.stage_steps


@dataclass(frozen=True)
class Plan:
    """The options of an AutoLRS that do not change on the way.

    Raises:
        TypeError, ValueError: names the option that is out of its range.
    """

    min_lr: float
    max_lr: float
    trial_steps: int
    stage_steps: int
    max_stage_steps: int
    trials: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("min_lr", "max_lr"):
            got: Any = getattr(self, name)
            if isinstance(got, bool) or not isinstance(got, (int, float)):
                raise TypeError(f"AutoLRS {name}: expected a number, got {got!r}; write {name}=1e-3")
            object.__setattr__(self, name, float(got))
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ValueError(
                f"AutoLRS min_lr, max_lr: expected 0 < min_lr < max_lr < inf, got {self.min_lr!r} and "
                f"{self.max_lr!r}; write a tenth and ten times of the LR that you would take"
            )
        least = {"trial_steps": LEAST, "stage_steps": 1, "max_stage_steps": 1, "trials": 1, "seed": 0}
        for name, bound in least.items():
            check_whole(name, getattr(self, name), bound)
        if self.seed >= 2**32:
            raise ValueError(f"AutoLRS seed: expected an int below 2**32, got {self.seed}; write seed=0")

    @property
    def first(self) -> Stage:
        """The first stage."""
        return Stage(self.trial_steps, self.stage_steps, validation=False)

    def steps(self, stage: Stage) -> int:
        """Return the steps of a stage, its trials included."""
        return self.trials * stage.trial_steps + stage.stage_steps

    def following(self, stage: Stage, left: int | None) -> Stage | None:
        """Return the stage after this one; None if none fits into the steps that are left.

        Stages double until they have `max_stage_steps`; from then on forecasts are of validation losses. One that no
        longer fits doubled stays as long as the last.

        Args:
            stage: the last one.
            left: steps that may still be made; None for no end.
        """
        same = Stage(stage.trial_steps, stage.stage_steps, stage.validation)
        if stage.stage_steps < self.max_stage_steps:
            options = [Stage(2 * stage.trial_steps, 2 * stage.stage_steps, stage.validation), same]
        else:
            options = [Stage(stage.trial_steps, stage.stage_steps, validation=True)]
        return next((found for found in options if left is None or self.steps(found) <= left), None)


def check_whole(name: str, got: Any, least: int) -> None:
    """Check an option that counts something.

    Raises:
        TypeError, ValueError: it is no int, or too small.
    """
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"AutoLRS {name}: expected an int, got {got!r}; write {name}={least}")
    if got < least:
        raise ValueError(f"AutoLRS {name}: expected an int >= {least}, got {got}; write {name}={least}")
