"""A view of the control vector on the host that never waits.

`request()` enqueues a copy of the state slots into pinned memory, `poll()` takes it over once the device has got that
far. On a CPU both happen at once. At most one copy is under way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from greedylr_fused.control import GROUPS_BEGIN, SLOT, STATE_BEGIN, Control


@dataclass(frozen=True)
class Metrics:
    """One snapshot of an optimizer's device state."""

    step: int
    """Committed steps."""
    lr: tuple[float, ...]
    """Learning rate that the next step will use, one per parameter group."""
    loss: float
    """Loss of the last step (weighted mean of what was observed); NaN before the first."""
    smoothed_loss: float
    """What was compared with `best`: the loss, or with `smooth` its mean over the window; NaN before the first."""
    best: float
    """Best compared value so far; infinite before the first."""
    grad_norm: float
    """2-norm of all gradients before clipping, after unscaling; NaN where it was not needed."""
    skipped: int
    """Steps skipped because of a non-finite gradient."""

    @classmethod
    def of(cls, state: list[float]) -> Metrics:
        """From the slots `STATE_BEGIN` on, through the last group's LR."""

        def value(name: str) -> float:
            return state[SLOT[name] - STATE_BEGIN]

        return cls(
            step=int(value("step")),
            lr=tuple(state[GROUPS_BEGIN - STATE_BEGIN :]),
            loss=value("loss"),
            smoothed_loss=value("smoothed"),
            best=value("best"),
            grad_norm=value("grad_norm"),
            skipped=int(value("skipped")),
        )


class Mirror:
    """The latest snapshot that has arrived.

    Args:
        control: what to mirror; a rebuilt control needs a new mirror.
    """

    def __init__(self, control: Control) -> None:
        self._source = control.vector[STATE_BEGIN : GROUPS_BEGIN + control.n_groups]
        on_cuda = self._source.is_cuda
        self._host = torch.full(self._source.shape, math.nan, dtype=torch.float64, device="cpu", pin_memory=on_cuda)
        self._arrived: Any = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        self.under_way = False
        self.metrics = Metrics.of(self._source.tolist())

    def request(self) -> None:
        """Enqueue a copy, unless one is under way or a graph is being captured."""
        if self.under_way or self._capturing():
            return
        self._host.copy_(self._source, non_blocking=self._arrived is not None)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(self._source.device))
        self.under_way = True

    def poll(self) -> bool:
        """Take over a copy that has arrived; False if there was none."""
        if not self.under_way or self._capturing():
            return False
        if self._arrived is not None and not self._arrived.query():
            return False
        self.under_way = False
        self.metrics = Metrics.of(self._host.tolist())
        return True

    def _capturing(self) -> bool:
        return self._arrived is not None and torch.cuda.is_current_stream_capturing()
