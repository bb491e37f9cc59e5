"""Learning rates on both sides: slots on the device, `param_groups[i]["lr"]` on the host.

Without a schedule the host decides: what stands in a group goes to its slot. With one the device decides: snapshots
refresh the groups, and a number that differs from the latest snapshot was written by the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import capturing
from greedylr_fused.control import Control
from greedylr_fused.schedules import DEFAULT_MAX_RATIO, Phase
from greedylr_fused.step import options
from greedylr_fused.step.groups import Groups
from greedylr_fused.step.mirror import Metrics, Mirror
from greedylr_fused.step.skips import Skips
from greedylr_fused.warning import warn

#: Steps in a row, before each of which the host wrote an LR: the schedule then has no say.
WRITES = 10
#: Relative rounding error that an LR divided by the curve may have.
_SLACK = 1e-12


class Rates:
    """Link that keeps LRs in parameter groups and slots equal, without waiting.

    What each step does with the LR in a group:

    | | no schedule | schedule |
    |---|---|---|
    | a number equal to what a snapshot showed there | nothing | nothing, even if the device has moved on since |
    | another number, or another object after the host's own | goes to the slot | the same, if within the bounds |
    | a tensor | copied on the device at every step | copied once, brought within the bounds; a number from then on |
    | a negative or non-finite number | refused | refused |

    `set()` writes whatever number it is given, equal ones too: of several ranks, each may have another snapshot.

    Args:
        control: where the slots are.
        groups: the optimizer's parameter groups.
        has_schedule: whether a schedule writes the slots.

    Attributes:
        groups: those groups, to tell them from others.
    """

    def __init__(self, control: Control, groups: Sequence[dict[str, Any]], *, has_schedule: bool) -> None:
        self.groups = Groups(groups)
        self._control = control
        self._has_schedule = has_schedule
        self._mirror = Mirror(control)
        self._skips = Skips(control, self._mirror)
        self._known: list[Any] = self._mirror.lr
        self._snapshot = [True] * len(self._known)  # whether that is what a snapshot showed
        self._writes, self._wrote = 0, False  # steps in a row before which the host wrote; this one so far
        self._warned = self._warned_of_peak = False
        if has_schedule:
            for group, lr in zip(groups, self._known, strict=True):
                group["lr"] = lr

    @property
    def metrics(self) -> Metrics:
        """The latest snapshot, with the LRs that the host wrote since."""
        found = self._mirror.metrics
        written = [
            lr if shown or known is None else known
            for lr, known, shown in zip(found.lr, self._known, self._snapshot, strict=True)
        ]
        return found if written == [*found.lr] else replace(found, lr=tuple(written))

    @property
    def searching(self) -> bool:
        """Return whether a level search goes on, as far as the host knows by now. One that is over stays so."""
        return self._control.searches and self._mirror.slot("phase") != Phase.FROZEN

    def zeroed(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether the host wrote 0 to all groups; if a schedule begins at 0, the object tells who wrote it."""
        return all(
            float(options.lr_of(group)) == 0.0 and (not self._has_schedule or group["lr"] is not self._known[index])
            for index, group in enumerate(groups)
        )

    def push(self, groups: Sequence[dict[str, Any]], *, tensors: bool = True, for_step: bool = False) -> None:
        """Send LRs that the host wrote into the groups to the device.

        Tensors are copied on the device at every call; with a schedule they are clamped to its bounds there, since the
        host cannot look at them.

        Args:
            groups: the optimizer's.
            tensors: whether to copy tensors: a graph being captured would go on copying from them.
            for_step: whether a step follows; ten of them, each after a write, are warned of once.
        """
        for index, group in enumerate(groups):
            lr = options.lr_of(group)
            if isinstance(lr, Tensor):
                if not tensors:
                    continue
                self._wrote = True
                self._control.write_lr(index, lr)
                self._snapshot[index] = False
                if self._has_schedule:
                    group["lr"] = self._known[index]
                else:
                    self._known[index] = None  # unknown to the host: any number that follows is written
                continue
            if type(lr) is not float and not options.is_number(lr):
                self._check(index, lr)  # refuses it by name
            if self._written(index, lr):
                self._wrote = True
                self._write(index, lr)
        if for_step:
            self._writes = self._writes + 1 if self._wrote and self._has_schedule else 0
            self._wrote = False
            if self._writes == WRITES and not self._warned:
                self._warned = True
                self._warn_of_writes()

    def pull(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take over a snapshot that has arrived and ask for the next. An LR from before the host wrote is not shown."""
        if self._mirror.update():
            if self._has_schedule and (
                self._control.writes == 0 or self._mirror.slot("writes") >= self._control.writes
            ):
                self._show(groups)
            self._skips.look()

    def set(self, groups: Sequence[dict[str, Any]], value: float | Tensor | Sequence[float]) -> None:
        """Write slots and groups at once: one number for all or one each; none if one of them is out of bounds."""
        options.check_not_traced("set_lr()")
        lrs = per_group(value, len(groups))
        for index, lr in enumerate(lrs):
            self._check(index, lr)
        for index, (group, lr) in enumerate(zip(groups, lrs, strict=True)):
            self._write(index, lr)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _written(self, index: int, lr: Any) -> bool:
        """Tell whether the host wrote this. A number equal to the snapshot's may have been read there and written back;
        of numbers that the host wrote itself, another object is another write.
        """
        if self._has_schedule and not self._snapshot[index]:
            return lr is not self._known[index]
        return bool(lr != self._known[index])

    def _show(self, groups: Sequence[dict[str, Any]]) -> None:
        for index, (group, lr) in enumerate(zip(groups, self._mirror.lr, strict=True)):
            written = isinstance(group["lr"], Tensor) or self._written(index, group["lr"])
            self._snapshot[index] = True
            if not written and lr == group["lr"]:
                continue  # as at most steps: nothing new to show, and none of the groups' many entries to make anew
            if not written:
                group["lr"] = lr
            self._known[index] = lr

    def _check(self, index: int, lr: float) -> None:
        if not options.is_number(lr):
            raise TypeError(
                f"learning rate of parameter group {index}: expected a number or a tensor, got {lr!r}; write e.g. 1e-3"
            )
        low, high = self._control.bounds[index]
        bounded = self._control.is_loss_driven and not self._control.follows_steps
        if not 0.0 <= lr < math.inf:
            raise ValueError(
                f"learning rate of parameter group {index}: expected a finite number >= 0, got {lr!r}; correct what "
                "wrote it, such as your call of set_lr() or a function given to LambdaLR"
            )
        if bounded and not low <= lr <= high:
            raise ValueError(
                f"learning rate of parameter group {index}: expected {low:g} to {high:g} (the schedule's min_lr and "
                f"max_lr), got {lr!r}; write one within, or construct the schedule with bounds that enclose it"
            )
        at = self._mirror.slot("curve_value") if self._control.follows_steps else 0.0
        if at > 0.0 and not low * (1 - _SLACK) <= lr / at <= high * (1 + _SLACK):
            raise ValueError(
                f"learning rate of parameter group {index}: expected a peak of {low:g} to {high:g}, got {lr!r} where "
                f"the schedule's curve is at {at:g}, so that its peak would be {lr / at:g}; write one within, or "
                "construct an optimizer with another lr"
            )

    def _warn_of_writes(self) -> None:
        warn(
            f"learning rates were written to param_groups {WRITES} times in a row, each of which cancels what "
            f"{type(self._control.schedule).__name__} had decided; drop what writes them, such as another scheduler, "
            "or pass schedule=None"
        )

    def _warn_of_peak(self, index: int, lr: float) -> None:
        """Warn if an LR written where the curve is low raises the peak, which in a warm-up nobody means to do."""
        at = self._mirror.slot("curve_value")
        if not self._control.follows_steps or self._control.is_loss_driven or at == 0.0 or self._warned_of_peak:
            return
        peak, constructed = lr / at, self._control.bounds[index][1] / DEFAULT_MAX_RATIO
        if peak > constructed * (1 + _SLACK) and math.isfinite(constructed):
            self._warned_of_peak = True
            warn(
                f"learning rate of parameter group {index}: {lr!r}, written where the schedule's curve is at "
                f"{at:g}, raises its peak from {constructed:g} to {peak:g}; construct the optimizer with "
                "another lr to change the peak alone"
            )

    def _write(self, index: int, lr: float) -> None:
        self._check(index, lr)
        self._warn_of_peak(index, lr)
        if capturing(self._control.device):
            raise RuntimeError(
                f"learning rate of parameter group {index}: expected a write before or after the capture of a CUDA "
                f"graph, got {lr!r} within it, whose replays would write it again; call set_lr() before the "
                "capture, or after it, which replays see"
            )
        self._control.write_lr(index, lr)
        self._known[index], self._snapshot[index] = lr, False


def per_group(value: float | Tensor | Sequence[float], n_groups: int) -> list[float]:
    """Return a list of one number per group, given one for all groups or one each.

    Raises:
        TypeError: something else.
        ValueError: a sequence of another length.
    """
    if options.is_number(value) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return [float(value)] * n_groups  # type: ignore[arg-type]  # a number of numpy is one, too
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or not all(options.is_number(x) or isinstance(x, Tensor) for x in value):
        raise TypeError(
            f"learning rate: expected a number, or a sequence of one per parameter group, got {value!r}; pass e.g. 1e-3"
        )
    values = [float(item) for item in value]
    if len(values) != n_groups:
        raise ValueError(
            f"learning rate: expected one, or one per parameter group, got {len(values)} of them; pass {n_groups}"
        )
    return values
