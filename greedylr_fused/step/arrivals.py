"""How the state of a control vector arrives on the host, which never waits: in the best way that the device allows."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from greedylr_fused.capture import capturing, outside_inference
from greedylr_fused.control import STATE_BEGIN, Control, Snapshot, block, shown

#: The slots that a snapshot shows, and the learning rates among them.
View = tuple[Tensor, Tensor]


class Arrivals(Protocol):
    """The latest snapshot that has arrived."""

    shown: View

    def update(self) -> bool:
        """Take over what has arrived, and ask for the next; tell whether something arrived."""


@outside_inference
def arrivals(control: Control) -> Arrivals:
    """Return the best way for this vector, with its state of now; waits for the device."""
    source, lrs = control.vector[shown(control.n_groups)], block("lr", control.n_groups).start - STATE_BEGIN
    if source.device.type == "cpu" and control.snapshot is None:
        return _Live((source, source[lrs:]))
    pinned = source.is_cuda and control.snapshot is None
    memory = torch.empty((2, *source.shape), dtype=torch.float64, device="cpu", pin_memory=pinned)
    memory[0].copy_(source)
    latest, other = ((host, host[lrs:]) for host in memory.unbind())  # one may be read while the other is written
    if control.snapshot is not None:
        return _Written(latest, other, control.snapshot)
    return _Copied(latest, other, source)


class _Live:
    """The vector itself, in the memory of the host."""

    def __init__(self, view: View) -> None:
        self.shown = view

    def update(self) -> bool:
        return True


class _Written:
    """Memory that the kernel which closes a step writes to: nothing is enqueued for it."""

    def __init__(self, latest: View, other: View, snapshot: Snapshot) -> None:
        self.shown, self._other, self._snapshot = latest, other, snapshot
        snapshot.forget()

    def update(self) -> bool:
        arrived = self._snapshot.take(self._other[0])
        if arrived:
            self.shown, self._other = self._other, self.shown
        return arrived


class _Copied:
    """Copies into pinned memory, at most one under way, none enqueued while a graph is captured; on devices of another
    type than CUDA's the host waits for each.
    """

    def __init__(self, latest: View, other: View, source: Tensor) -> None:
        self.shown, self._other, self._source = latest, other, source
        self._arrived: Any = torch.cuda.Event() if source.is_cuda else None  # type: ignore[no-untyped-call]
        self._under_way = False

    def update(self) -> bool:
        if self._arrived is None:
            self.shown[0].copy_(self._source)
            return True
        if capturing(self._source.device):
            return False
        if arrived := self._under_way and self._arrived.query():
            self.shown, self._other = self._other, self.shown
            self._under_way = False
        if not self._under_way:
            self._other[0].copy_(self._source, non_blocking=True)
            self._arrived.record(torch.cuda.current_stream(self._source.device))
            self._under_way = True
        return arrived
