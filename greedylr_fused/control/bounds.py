"""The bounds between which a schedule moves the level of each parameter group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_fused.schedules import DEFAULT_MAX_RATIO, LossSchedule, StepSchedule

Schedule = LossSchedule | StepSchedule


def bounds_of(schedule: Schedule | None, initial_lrs: Sequence[float]) -> list[tuple[float, float]]:
    """Return the bounds of the levels of groups with these starting LRs.

    Raises:
        ValueError: all of them are 0, or one is outside the bounds that the schedule gives.
    """
    if schedule is None:
        return [(0.0, math.inf)] * len(initial_lrs)
    if not any(initial_lrs):
        raise ValueError(
            f"{type(schedule).__name__}: expected a starting lr above 0 in at least one parameter group, since a "
            "schedule multiplies it, got 0 in every one; write lr=3e-4 (into the param_groups of the checkpoint, if it "
            "ended at 0)"
        )
    if not isinstance(schedule, LossSchedule):
        return [(0.0, DEFAULT_MAX_RATIO * lr if lr else math.inf) for lr in initial_lrs]
    return [schedule.bounds(lr, group) for group, lr in enumerate(initial_lrs)]


def bounds_of_saved(schedule: Schedule | None, groups: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return the bounds of the levels of groups with the numbers of a checkpoint.

    Raises:
        ValueError: a level is outside its bounds, or as for `bounds_of`.
    """
    bounds = bounds_of(schedule, [saved["initial_lr"] for saved in groups])
    for group, (saved, (low, high)) in enumerate(zip(groups, bounds, strict=True)):
        # Of a search that outside trials: within a window the level may be anywhere below.
        level = saved["initial_lr"] * saved["search_level"] if "search_level" in saved else saved["level"]
        if not low <= level <= high:
            raise ValueError(
                f"checkpoint: learning rate of parameter group {group}: expected {low} to {high} (bounds of this "
                f"schedule, such as max_lr or top), got {level}; construct {type(schedule).__name__} with bounds that "
                "enclose it"
            )
    return bounds
