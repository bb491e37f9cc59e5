"""What the loss has decided in a step, from the state before and after it: a raise, a cut, a reset, or nothing.

The counters tell, not the LR: that moves with the curve of a step schedule too, and the host may write it between two
steps, which is no decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from greedylr_fused.control.slots import BLOCKS, GROUPS_BEGIN, SLOT, STATE_BEGIN
from greedylr_fused.schedules.loss_driven import LossSchedule
from greedylr_fused.schedules.loss_spec import LossSpec

RAISE, CUT, RESET = "raise", "cut", "reset"
EVENTS = (RAISE, CUT, RESET)

_AT = {name: slot - STATE_BEGIN for name, slot in SLOT.items() if slot >= STATE_BEGIN}
_GROUPS = GROUPS_BEGIN - STATE_BEGIN


class State:
    """A row of the ring, with its numbers by name.

    Args:
        values: the slots from `STATE_BEGIN` on, and all blocks of the groups.
    """

    __slots__ = ("_values", "number")

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values
        self.number = int(self["step"] + self["skipped"])

    def __getitem__(self, name: str) -> float:
        return self._values[_AT[name]]

    def block(self, name: str) -> Sequence[float]:
        """One number per parameter group."""
        size = (len(self._values) - _GROUPS) // len(BLOCKS)
        begin = _GROUPS + BLOCKS.index(name) * size
        return self._values[begin : begin + size]

    @property
    def shown(self) -> list[float]:
        """What `Metrics.of` takes."""
        return [*self._values[:_GROUPS], *self.block("lr")]


def event(schedule: Any, before: State, now: State) -> str | None:
    """What was decided in the step between two states; None if nothing, or if it changed nothing, as at a bound.

    Where the host has written an LR in between, the event is what the loss decided on top of that.

    Args:
        schedule: of the optimizer.
        before: the state in which the step found what it decides from.
        now: the state that it left.
    """
    if not isinstance(schedule, LossSchedule) or now["skipped"] > before["skipped"]:
        return None
    if before["cooldown_left"] > 0 or before["warmup_left"] > 0:
        return None  # this observation was waited through
    if now["good"] or now["bad"]:
        return None  # counting goes on; every decision ends it
    if schedule.patience > 0 and not (before["good"] or before["bad"]):
        return None  # nothing was counted, since all that was observed had no weight
    moved = now.block("level") != before.block("level")
    if _is_better(schedule, before, now):
        return RAISE if moved and schedule.raises else None
    if _has_reset(schedule, before, now):
        return RESET if moved or now["best"] != before["best"] else None
    return CUT if moved else None


def _is_better(schedule: LossSchedule, before: State, now: State) -> bool:
    """Whether the observation was (C4), which at a patience of 0 no counter keeps."""
    if not math.isfinite(now["loss"]):
        return False
    spec = LossSpec(schedule, before.block("initial_lr"))
    if not (schedule.forget_every and before["forget_left"] == 0):  # C3
        spec.best = before["best"]
    return spec._is_better(now["smoothed"])


def _has_reset(schedule: LossSchedule, before: State, now: State) -> bool:
    """Whether a cut has ended in starting over (C8), which leaves the state that this finds."""
    if before["resets_left"] > 1 or math.isfinite(now["best"]):
        return False
    if schedule.forget_every:
        return now["forget_left"] == schedule.forget_every
    return now.block("level") == before.block("initial_lr") and now["resets_left"] == schedule.reset_start
