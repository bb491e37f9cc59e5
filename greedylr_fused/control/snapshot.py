"""Memory that the host maps for the device: what each step leaves is written there by the kernel that closes it.

So the host reads it without a copy, an event or a call of the driver, after the replay of a graph too. Between two
copies of a number that no step before had, `step + skipped`, lie the slots that a snapshot shows; equal numbers say
that none was written to while they were read. Where there is no such memory the host copies the vector.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import capturing

_take: Any = None
try:
    _take = getattr(importlib.import_module("greedylr_fused._host"), "take_snapshot", None)
except ImportError:  # without a compiler; Python alone cannot order what it reads
    pass
#: Memory of snapshots that are gone, by device and length: kernels that are on their way may still write to it, and
#: PyTorch's allocator, which does not know of them, must not hand it to others.
_gone: dict[tuple[torch.device, int], list[Tensor]] = {}


class Snapshot:
    """The words that a device writes, and the host takes.

    Args:
        memory: float64 [n + 2] that both can reach, n = the slots shown.
        address: where the device finds it.
    """

    def __init__(self, memory: Tensor, address: int) -> None:
        self.memory, self.address = memory, address
        self._number = -1.0
        self.forget()

    def forget(self) -> None:
        """Take nothing that was written so far. The device must have ended what it was doing."""
        self.memory.fill_(-1.0)
        self._number = -1.0

    def take(self, target: Tensor) -> bool:
        """Copy the slots to `target`, float64 [n] in host memory, unless they are the ones that were taken last, or
        are being written now; return whether they were copied.
        """
        number: float = _take(self.memory.data_ptr(), target.data_ptr(), self.memory.numel() - 2, self._number)
        if number < 0:
            return False
        self._number = number
        return True


def mapped(count: int, device: torch.device) -> Snapshot | None:
    """Return a snapshot of so many slots that kernels on this device can write; None if there is no such memory."""
    if device.type != "cuda" or _take is None:
        return None
    gone = _gone.setdefault((device, count + 2), [])
    if gone and not capturing(device):
        torch.cuda.synchronize(device)
        memory = gone.pop()
    else:
        memory = torch.empty(count + 2, dtype=torch.float64, device="cpu", pin_memory=True)
    with torch.cuda.device(device):
        address = device_address(memory.data_ptr())
    if address is None:
        return None
    made = Snapshot(memory, address)
    weakref.finalize(made, gone.append, memory).atexit = False
    return made


def device_address(host: int) -> int | None:
    """Return where the device finds pinned memory, from CUDA's driver; None if it has none, or cannot tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        find = driver.cuMemHostGetDevicePointer_v2
    except (OSError, AttributeError):  # no driver of CUDA's, as with ROCm
        return None
    found = ctypes.c_uint64()
    status: int = find(ctypes.byref(found), ctypes.c_void_p(host), 0)
    return found.value if status == 0 else None
