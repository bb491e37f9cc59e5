"""What is refused within ZeroRedundancyOptimizer, and what to do instead."""

from __future__ import annotations

import sys
from typing import Any

from greedylr_fused.schedules import LevelSearch


def check_not_in_zero(schedule: Any, skip_spikes: Any = None, tuner: Any = None) -> None:
    """Refuse a schedule, spike skipping or a tuner of an optimizer that ZeroRedundancyOptimizer constructs: it keeps
    learning rates of its own, copies them over those inside before each step, and neither saves nor loads through the
    optimizer inside.

    Raises:
        TypeError: names what drives ZeroRedundancyOptimizer from outside.
    """
    asked = {"schedule": schedule, "skip_spikes": skip_spikes, "tuner": tuner}
    found = [name for name, option in asked.items() if option is not None]
    frame: Any = sys._getframe() if found else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            if schedule is None:
                raise TypeError(
                    f"{found[0]}: expected None within ZeroRedundancyOptimizer, whose checkpoints would not have what "
                    f"it remembers, got {asked[found[0]]!r}; shard by torch.distributed.fsdp.fully_shard"
                )
            if isinstance(schedule, LevelSearch):
                raise TypeError(
                    f"schedule: expected None within ZeroRedundancyOptimizer, got {type(schedule).__name__}, which "
                    "puts parameters back after trials; shard by torch.distributed.fsdp.fully_shard"
                )
            raise TypeError(
                f"schedule: expected None within ZeroRedundancyOptimizer, got {type(schedule).__name__}; construct "
                "zero = ZeroRedundancyOptimizer(..., lr=torch.tensor(lr)) without it, then "
                "DeviceSchedule(zero, schedule), and call its step(loss=loss) after zero.step()"
            )
        frame = frame.f_back
