"""What a captured step steps: a FusedAdamW, or a DeviceSchedule and its optimizers, as one."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from greedylr_fused.device_schedule import DeviceSchedule
from greedylr_fused.optimizer import FusedAdamW


class Stepped:
    """The parts of it that a capture and a replay deal with.

    Args:
        whole: whose `step(loss=loss)` closes the training step.

    Attributes:
        fused: the FusedAdamWs among its optimizers, which is itself if it is one.
        others: optimizers of other kinds.
    """

    def __init__(self, whole: FusedAdamW | DeviceSchedule) -> None:
        self.whole = whole
        optimizers: tuple[Optimizer, ...] = whole.optimizers if isinstance(whole, DeviceSchedule) else (whole,)
        self.fused = [optimizer for optimizer in optimizers if isinstance(optimizer, FusedAdamW)]
        self.others = [optimizer for optimizer in optimizers if not isinstance(optimizer, FusedAdamW)]

    @property
    def deciders(self) -> list[FusedAdamW | DeviceSchedule]:
        """Those that have a control vector and listeners: all that a training step must step."""
        return [*self.fused] if self.whole in self.fused else [*self.fused, self.whole]

    @property
    def device(self) -> torch.device:
        return self.whole._control.device

    @property
    def devices(self) -> set[torch.device]:
        """Where the parameters lie now."""
        groups = [group for optimizer in (*self.fused, *self.others) for group in optimizer.param_groups]
        return {param.device for group in groups for param in group["params"]} or {self.device}

    @property
    def observed(self) -> int:
        """Losses that were observed and not yet decided from."""
        return sum(decider._control.observed for decider in self.deciders)

    def zero_grad(self) -> None:
        for optimizer in (*self.fused, *self.others):
            optimizer.zero_grad()

    def take_written(self) -> None:
        """Send the LRs that stand in the groups to the slots that graphs read, without waiting."""
        for optimizer in self.fused:
            optimizer._take_written()

    def replayed(self) -> None:
        """Show what is known by now, after a replay."""
        for decider in self.deciders:
            decider._replayed()


class Capturing:
    """Context in which it is captured: what the graph reads goes into the list given here. A capture that fails has
    done nothing on the device, so that no loss is pending then, and gradients, which have no values, are cleared.
    """

    def __init__(self, stepped: Stepped, reads: list[Any]) -> None:
        self._stepped, self._reads = stepped, reads
        self._kept: list[Any] = []

    def __enter__(self) -> None:
        for optimizer in self._stepped.fused:
            optimizer._engine.captures.append(self._reads)
        if isinstance(whole := self._stepped.whole, DeviceSchedule):
            self._kept, whole._captures = whole._captures, self._reads

    def __exit__(self, kind: Any, *_: object) -> None:
        for optimizer in self._stepped.fused:
            optimizer._engine.captures.pop()
        if isinstance(whole := self._stepped.whole, DeviceSchedule):
            whole._captures = self._kept
        if kind is not None:
            for decider in self._stepped.deciders:
                decider._control.observed = 0
            self._stepped.zero_grad()


class Counted:
    """Listener that counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def after_step(self) -> None:
        self.steps += 1

    def after_replay(self) -> None:
        """Do nothing: this does not listen during replays."""

    def after_restart(self) -> None:
        """Do nothing: the count goes on."""
