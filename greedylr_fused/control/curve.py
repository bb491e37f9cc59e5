"""The curve of a step schedule on the device: a table of the factors that the level is multiplied by at each step.

From a table the device takes what the schedule's formula gave on the host, to the last bit, whatever its own cosine
would have given. It costs 8 bytes per step of the schedule.
"""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import capturing, outside_inference
from greedylr_fused.schedules import WSD, LossSchedule, StepSchedule
from greedylr_fused.warning import warn

#: Steps that an open-ended schedule's late decay may take: their memory is there from the start, where captured graphs
#: find it.
LONGEST_DECAY = 2**20


class Curve:
    """A step schedule's table, and the room for a late decay behind it.

    Args:
        schedule: a step schedule, a loss-driven one with or without a `base`, or None.
        device: where the table lies.

    Attributes:
        base: the step schedule, or None.
        values: float64 [length + room]: the curve value by step, the last of which stays; from `length` on, the late
            decay's.
        length: 0 without a schedule; then `values` has one element that is not read.
        warmup: steps before the value is first at its highest.
        decay_room: steps that a late decay may take; 0 if there is none.
    """

    @outside_inference
    def __init__(self, schedule: Any, device: torch.device) -> None:
        self.base: StepSchedule | None = schedule.base if isinstance(schedule, LossSchedule) else schedule
        self.host = array("d", [1.0]) if self.base is None else _checked(self.base, self.base.curve())
        self.length = 0 if schedule is None else len(self.host)
        open_ended = isinstance(self.base, WSD) and self.base.total_steps is None
        self.decay_room = LONGEST_DECAY if open_ended else 0
        self._decay = array("d")
        table = torch.frombuffer(self.host, dtype=torch.float64)
        room = torch.zeros(self.decay_room + 1 if open_ended else 0, dtype=torch.float64, device="cpu")
        self.warmup = int(table.argmax())  # the first, of equal ones
        self.values: Tensor = torch.cat([table, room]).to(device)

    def value_at(self, step: float, decay_start: float, decay_steps: float) -> float:
        """Return the curve value of a step (S1, S2); this specifies what the device computes."""
        value = self.host[int(min(step, len(self.host) - 1))]
        if step >= decay_start:
            value *= self.decay(int(decay_steps))[int(min(step - decay_start, decay_steps))]
        return value

    def decay(self, steps: int) -> array[float]:
        """Return the curve of a late decay of so many steps, `steps + 1` values."""
        if len(self._decay) != steps + 1:
            self._decay = self.base.decay(steps)  # type: ignore[union-attr]
        return self._decay

    def check_decay(self, steps: int, begun: int) -> None:
        """Check that a late decay of so many steps may begin now.

        Args:
            steps: of the decay.
            begun: length of the one that has begun, 0 for none.

        Raises:
            RuntimeError: the schedule has no late decay, it has begun, or a graph is being captured.
            ValueError, TypeError: not a number of steps, or too many.
        """
        if begun:
            raise RuntimeError(
                f"start_decay(): expected one call per run, got a second call: the decay of {begun} steps has begun; "
                "go on from a checkpoint before it to decay in another way"
            )
        if not self.decay_room:
            got = "no step schedule" if self.base is None else repr(self.base)
            raise RuntimeError(
                f"start_decay(): expected a schedule, or the base of one, that waits for it, got {got}; construct it "
                "with WSD(warmup_steps=...), without total_steps"
            )
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"start_decay(): expected an int, got steps={steps!r}; write start_decay(1000)")
        if not 1 <= steps <= self.decay_room:
            raise ValueError(
                f"start_decay(): expected 1 to {self.decay_room} steps, got {steps}; write the whole run as "
                "WSD(total_steps, decay_steps=...) to decay for longer"
            )
        if capturing(self.values.device):
            raise RuntimeError(
                "start_decay(): expected a call before or after the capture of a CUDA graph, got one within it, whose "
                "replays would begin again; move the call out of it: replays see it"
            )

    def write_decay(self, steps: int) -> None:
        """Write the curve of a late decay where the device reads it, without waiting."""
        values = torch.frombuffer(self.decay(steps), dtype=torch.float64)
        staged = values.pin_memory() if self.values.is_cuda else values
        self.values[self.length : self.length + steps + 1].copy_(staged, non_blocking=True)

    def warn_of_end(self, step: int) -> None:
        """Warn if the schedule is over at that step and its LR 0 from there on."""
        if self.base is not None and not self.decay_room and step >= self.length and self.host[-1] == 0.0:
            warn(
                f"{type(self.base).__name__}: its LR is 0 from step {self.length - 1} on, and the checkpoint is of "
                f"step {step}; construct it with a larger total_steps to train on, or begin anew as docs/faq.md says"
            )

    @outside_inference
    def to(self, device: torch.device) -> None:
        self.values = self.values.to(device)


def _checked(schedule: StepSchedule, curve: Any) -> array[float]:
    """Return the curve of a schedule if the device can read it: others may have written the schedule.

    Raises:
        TypeError, ValueError: the curve is no such table.
    """
    name = f"{type(schedule).__name__}.curve()"
    if not isinstance(curve, array) or curve.typecode != "d" or not curve:
        raise TypeError(
            f'{name}: expected a filled array("d", ...), got {curve!r:.60}; wrap the values in such an array'
        )
    values = torch.frombuffer(curve, dtype=torch.float64)
    wrong = ~((values >= 0) & values.isfinite())
    if bool(wrong.any()):
        step = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: expected a finite number >= 0 for step {step}, got {curve[step]}; correct it")
    return curve
