"""The bounds between which a schedule moves the level of each parameter group."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
