"""A ring of rows in device memory, one per step: written without numbers of the host, and read without waiting.

The device counts the rows, so that each replay of a captured graph writes the next one. A copy on the host tells by
itself which rows are new, and how many were overwritten before they were copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import outside_inference
from greedylr_fused.control import SLOT, STATE_BEGIN, Control, ring_begin

#: Value of "skip" in a row that is no step, but the state where steps begin.
MARK = -1.0
#: The same, for the state where recording ends.
END = -2.0


class Ring:
    """The last rows of one control vector: its state scalars and all blocks of its groups.

    Args:
        control: what to record.
        capacity: number of rows.

    Attributes:
        read: how many rows were taken from its copies so far, lost ones included.
    """

    @outside_inference
    def __init__(self, control: Control, capacity: int) -> None:
        self._source = _state_of(control)[None]
        width, device = self._source.shape[1], self._source.device
        self.capacity, self.read = capacity, 0
        # One piece of memory, and so one copy: the number of rows written, an integer in the bits of a float64, and
        # the rows.
        self._memory = torch.zeros(1 + capacity * width, dtype=torch.float64, device=device)
        self._written = self._memory[:1].view(torch.int64)
        self._rows = self._memory[1:].view(capacity, width)
        self._at, self._one, self._capacity = (torch.tensor([n], device="cpu").to(device) for n in (0, 1, capacity))
        self._free = [self._new_host() for _ in range(2)]  # allocating pinned memory waits for the device

    @property
    def device(self) -> torch.device:
        return self._memory.device

    def records(self, control: Control) -> bool:
        """Return whether the ring records this control, in the same memory."""
        source = _state_of(control)
        return source.data_ptr() == self._source.data_ptr() and source.shape == self._source.shape[1:]

    def write(self) -> None:
        """Add a row, without waiting."""
        self._add(self._source)

    def mark(self, kind: float = MARK) -> None:
        """Add a row that is no step: the state from which the steps after it go on, or in which they end."""
        row = self._source.clone()
        row[0, SLOT["skip"] - STATE_BEGIN].fill_(kind)
        self._add(row)

    def _add(self, row: Tensor) -> None:
        torch.remainder(self._written, self._capacity, out=self._at)
        self._rows.index_copy_(0, self._at, row)
        self._written.add_(self._one)

    def copy(self) -> Copy:
        """Enqueue a copy to the host behind all that was enqueued so far, without waiting."""
        host = self._free.pop() if self._free else self._new_host()
        return Copy(self, host, to_host(self._memory, host))

    def give_back(self, host: Tensor) -> None:
        """Take back the memory of a copy, for another one."""
        self._free.append(host)

    @outside_inference
    def _new_host(self) -> Tensor:
        return torch.empty(self._memory.shape, dtype=torch.float64, device="cpu", pin_memory=self._memory.is_cuda)


@dataclass(frozen=True)
class Copy:
    """A ring's memory on its way to the host. Copies of one ring are to be read once each, in the order in which they
    were made.
    """

    ring: Ring
    _host: Tensor
    _event: Any

    def arrived(self) -> bool:
        """Return whether the copy has arrived; does not wait."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        """Wait until the copy has arrived."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> tuple[int, list[list[float]]]:
        """Return how many rows were lost since the last copy, and the rows after, oldest first; arrived copies only."""
        ring = self.ring
        written: int = self._host[:1].view(torch.int64).tolist()[0]
        begin = max(ring.read, written - ring.capacity)
        lost, ring.read = begin - ring.read, written
        rows = self._host[1:].view(ring.capacity, -1)
        first, count = begin % ring.capacity, written - begin
        found: list[list[float]] = rows[first : first + count].tolist()
        found += rows[: count - len(found)].tolist()
        ring.give_back(self._host)
        return lost, found


def to_host(memory: Tensor, host: Tensor) -> Any:
    """Copy memory to the host without waiting; return the event of its arrival, None if it is there at once."""
    host.copy_(memory, non_blocking=memory.is_cuda)
    if not memory.is_cuda:
        return None
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(memory.device))
    return arrived


def _state_of(control: Control) -> Tensor:
    return control.vector[STATE_BEGIN : ring_begin(control.n_groups)]
