"""Memory that the host maps for the device: what each step leaves is written there by the kernel that closes it.

So the host reads it without a copy, an event or a call of the driver, after the replay of a graph too. Between two
copies of a number that no step before had, `step + skipped`, lie the slots that a snapshot shows; equal numbers say
that none was written to while they were read. Where there is no such memory the host copies the vector.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import capturing

#: Memory that went while a graph was captured, and that no copy could guard.
_LEFT: list[Tensor] = []

_native: Any = None
try:
    _native = importlib.import_module("greedylr_fused._host")
except ImportError:  # without a compiler; Python alone cannot order what it reads
    pass


class Snapshot:
    """The words that a device writes, and the host takes.

    Args:
        memory: float64 [n + 2] that both can reach, n = the slots shown.
        address: where the device finds it.
        device: the one that writes; kernels that it has yet to run keep the memory from others.
    """

    def __init__(self, memory: Tensor, address: int, device: torch.device) -> None:
        self.memory, self.address = memory, address
        self._number = -1.0
        self.forget()
        if device.type == "cuda":
            last = torch.zeros(1, dtype=torch.float64, device=device)
            weakref.finalize(self, _keep_from_others, memory, last).atexit = False

    def forget(self) -> None:
        """Take nothing that was written so far. The device must have ended what it was doing."""
        self.memory.fill_(-1.0)
        self._number = -1.0

    def take(self, target: Tensor) -> bool:
        """Copy the slots to `target`, float64 [n] in host memory, unless they are the ones that were taken last, or
        are being written now; tell whether that was so.
        """
        number: float = _native.take_snapshot(
            self.memory.data_ptr(), target.data_ptr(), self.memory.numel() - 2, self._number
        )
        if number < 0:
            return False
        self._number = number
        return True


def mapped(count: int, device: torch.device) -> Snapshot | None:
    """Return a snapshot of so many slots that kernels on this device can write; None if there is no such memory."""
    if device.type != "cuda" or _native is None:
        return None
    memory = torch.empty(count + 2, dtype=torch.float64, device="cpu", pin_memory=True)
    with torch.cuda.device(device):
        address = _device_address(memory.data_ptr())
    return None if address is None else Snapshot(memory, address, device)


def _keep_from_others(memory: Tensor, last: Tensor) -> None:
    """Let PyTorch's allocator hand this memory out again only when the current stream is done with what it has.

    It knows of copies, and not of kernels: so the last use is a copy.
    """
    if capturing(last.device):
        _LEFT.append(memory)
    else:
        last.copy_(memory[:1], non_blocking=True)


def _device_address(host: int) -> int | None:
    """Return where the device finds pinned memory, from CUDA's driver; None if it has none, or cannot tell."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_uint64()
    status: int = driver.cuMemHostGetDevicePointer_v2(ctypes.byref(found), ctypes.c_void_p(host), 0)
    return found.value if status == 0 else None
