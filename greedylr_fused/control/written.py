"""A learning rate that the host writes under a schedule: the level that gives it, from which the schedule goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def place(lr: Tensor, level: Tensor, bounds: tuple[float, float], curve_value: Tensor | None) -> None:
    """Let the level of a group follow its LR, and the LR the bounds of the level, without waiting.

    Args:
        lr: 0-d, as it was written.
        level: 0-d, of the same group.
        bounds: (lowest, highest) level.
        curve_value: 0-d, what the step schedule multiplies the level by; where it is 0, no level gives the LR, which
            then holds for one step alone. None if there is no step schedule: LR and level are one.
    """
    if curve_value is None:
        level.copy_(lr.clamp_(*bounds))
        return
    at_zero = curve_value == 0
    level.copy_(torch.where(at_zero, level, (lr / curve_value).clamp_(*bounds)))
    lr.copy_(torch.where(at_zero, lr, level * curve_value))
