"""The offset of the C++ tensor in a Python tensor, with which PyTorch's C functions read its memory in nanoseconds.

The functions are those of compiled models (AOTInductor), whose binary interface PyTorch keeps. They take the address of
a C++ tensor, a single pointer, which a Python tensor holds at some offset. The offset is no interface: it is looked for
in tensors whose pointer is known, and used only if it is the same in all.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch

_FUNCTIONS = ("data_ptr", "dim", "sizes", "strides", "dtype")


def find() -> tuple[int, ...] | None:
    """Return addresses of the functions `aoti_torch_get_*` and the tensor's offset in bytes; None if one is missing."""
    if sys.implementation.name != "cpython":
        return None
    plain = [torch.zeros(shape, device="cpu") for shape in ((2, 3), (), (1,), (4,))]
    samples = [*plain[:2], torch.nn.Parameter(plain[2]), plain[3][1:]]
    offsets = set.intersection(*map(_places, samples))
    functions = _functions()
    return (*functions, min(offsets)) if len(offsets) == 1 and functions else None


def _places(tensor: torch.Tensor) -> set[int]:
    """Return the offsets at which the object holds the pointer to the tensor's implementation."""
    word = ctypes.sizeof(ctypes.c_void_p)
    places = range(0, torch._C.TensorBase.__basicsize__ - word + 1, word)
    return {k for k in places if ctypes.c_size_t.from_address(id(tensor) + k).value == tensor._cdata}


def _functions() -> list[int]:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(folder / name))  # which is loaded already
            found = [ctypes.cast(getattr(library, f"aoti_torch_get_{f}"), ctypes.c_void_p).value for f in _FUNCTIONS]
            return [address for address in found if address is not None]
    return []
