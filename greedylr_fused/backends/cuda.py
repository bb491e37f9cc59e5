"""The CUDA backend: C++ kernels over the table's addresses, one launch per mix of storage types.

The compiled module `greedylr_fused._cuda` includes no framework header and brings its own CUDA runtime, so one build
serves every version of PyTorch. Streams enter as handles; nothing here waits for the device.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from greedylr_fused.backends import native
from greedylr_fused.backends.base import absent
from greedylr_fused.tensors import BackupTable, TensorTable

_native, _reason = native.load("_cuda")
#: Types of the devices whose memory the kernels may touch.
_DEVICE_TYPES: tuple[str, ...] = ("cuda",)
#: The oldest GPUs that the module holds machine code for.
_OLDEST = (8, 0)


class CudaBackend:
    """The steps of one table of CUDA tensors, on the stream that is current at each call.

    Args:
        table: its tensors must stay where they are for the life of this object.

    Attributes:
        chunk_size: elements that a warp takes at a time.
    """

    name: ClassVar[str] = "cuda"
    chunk_size: ClassVar[int] = 2048
    writes_copies: ClassVar[bool] = False

    def __init__(self, table: TensorTable) -> None:
        self.table = table
        self._device = table.device
        self._scratch = torch.zeros(_native.scratch_bytes(), dtype=torch.uint8, device=table.device)
        self.memory = [self._scratch]
        self._native = _native.TensorTable(
            **native.described(table),
            scratch=self._scratch.data_ptr(),
            snapshot=0 if table.snapshot is None else table.snapshot.address,
            device=_index(table.device),
        )

    def measure(self, then_clip: bool = True) -> None:
        self._native.measure(_stream(self._device), then_clip)

    def clip(self) -> None:
        self._native.clip(_stream(self._device))

    def update(self, then_control: bool = True, loss: Tensor | None = None) -> None:
        self._native.update(_stream(self._device), then_control, *native.place_of(loss))

    def control(self, loss: Tensor | None = None) -> None:
        self._native.control(_stream(self._device), *native.place_of(loss))

    def observe(self, loss: Tensor, weight: float | Tensor) -> None:
        self._native.observe(_stream(self._device), *native.observation(loss, weight))

    def backup(self, backup: BackupTable) -> None:
        self._native.backup(_stream(self._device), native.copied(backup))

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        """Send as kernel parameters, which a captured graph copies: there is no staging memory to keep."""
        device = target.device
        _native.send(target.data_ptr(), words.data_ptr(), words.numel(), _index(device), _stream(device))
        return None

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on that device, or None if it can."""
        if device.type not in _DEVICE_TYPES:
            return f"it updates CUDA tensors, and these are on {device.type}"
        if getattr(torch.version, "hip", None):
            return "this PyTorch is built for ROCm; the backend 'triton' runs there"
        if _native is None:
            return _reason
        try:
            if device.type == "cuda" and torch.cuda.is_available():
                if reason := absent(device):
                    return reason
                capability = torch.cuda.get_device_capability(device)
                if capability < _OLDEST:
                    version = ".".join(map(str, capability))
                    return f"it needs compute capability 8.0 or later, and {device} has {version}"
            _native.check_usable(_index(device))
        except RuntimeError as error:
            return str(error)
        return None


def _index(device: torch.device) -> int:
    index: int | None = device.index
    if index is not None:
        return index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _stream(device: torch.device) -> int:
    """Return the handle of the current stream; 0 for CPU tensors, which the tests' emulation runs on. PyTorch's own
    generated code asks this way, too, in a tenth of the time that `torch.cuda.current_stream` takes.
    """
    return torch._C._cuda_getCurrentRawStream(_index(device)) if device.type == "cuda" else 0
