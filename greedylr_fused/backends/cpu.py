"""The CPU backend: C++ loops over the table's addresses, on the threads that PyTorch itself uses.

The compiled module `greedylr_fused._cpu` includes no framework header, so one build serves every version of PyTorch,
and holds its loops for several instruction sets, so one build serves every processor of an architecture.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from greedylr_fused.backends import native
from greedylr_fused.tensors import BackupTable, TensorTable

_native, _reason = native.load("_cpu")


class CpuBackend:
    """The steps of one table of CPU tensors.

    Each call uses as many threads as `torch.get_num_threads()` then says, fewer for little work. The result has the
    same bits for every number of threads and every instruction set.
    """

    name: ClassVar[str] = "cpu"
    chunk_size: ClassVar[int] = 16384
    writes_copies: ClassVar[bool] = True
    memory = ()

    def __init__(self, table: TensorTable) -> None:
        self.table = table
        self._native = _native.TensorTable(**native.described(table))

    def measure(self, then_clip: bool = True) -> None:
        self._native.measure(torch.get_num_threads(), then_clip)

    def clip(self) -> None:
        self._native.clip()

    def update(self, then_control: bool = True, loss: Tensor | None = None) -> None:
        self._native.update(torch.get_num_threads(), then_control, *native.place_of(loss))

    def control(self, loss: Tensor | None = None) -> None:
        self._native.control(*native.place_of(loss))

    def observe(self, loss: Tensor, weight: float | Tensor) -> None:
        self._native.observe(*native.observation(loss, weight))

    def backup(self, backup: BackupTable) -> None:
        self._native.backup(torch.get_num_threads(), native.copied(backup))

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        target.copy_(words)
        return None

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on that device, or None if it can."""
        if device.type != "cpu":
            return f"it updates CPU tensors, and these are on {device.type}"
        if _native is None:
            return _reason
        return None
