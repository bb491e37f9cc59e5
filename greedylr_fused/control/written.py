"""A learning rate that the host writes under a schedule: the level that gives it, from which the schedule goes on."""

from __future__ import annotations

import torch
from torch import Tensor

#: Slots that tell what a search makes of the starting LR: outside trials, and in the next step.
SEARCH = ("search_level", "multiplier")


def place(
    lr: Tensor,
    level: Tensor,
    bounds: tuple[float, float],
    curve_value: Tensor | None,
    search: tuple[Tensor, ...] | None = None,
) -> None:
    """Let the level of a group follow its LR, and the LR the bounds of the level, without waiting.

    Args:
        lr: 0-d, as it was written.
        level: 0-d, of the same group.
        bounds: (lowest, highest) level.
        curve_value: 0-d, what the step schedule multiplies the level by; where it is 0, no level gives the LR, which
            then holds for one step alone. None if there is no step schedule: LR and level are one.
        search: 0-d each, the starting LR and the slots of `SEARCH`: the starting LR moves in proportion, and the search
            goes on with its window; an LR of 0 holds for one step alone, since no level leads back from it. None for
            other schedules.
    """
    if curve_value is None:
        level.copy_(lr.clamp_(*bounds))
        return
    at_zero = curve_value == 0
    moved = (lr / curve_value).clamp_(*bounds)
    if search is not None:
        initial, search_level, multiplier = search
        at_zero = at_zero | (lr == 0)
        outside = (lr / curve_value / multiplier * search_level).clamp_(*bounds)
        initial.copy_(torch.where(at_zero, initial, outside / search_level))
        moved = initial * multiplier
    level.copy_(torch.where(at_zero, level, moved))
    lr.copy_(torch.where(at_zero, lr, level * curve_value))
