"""Backend `triton`: the step as Triton kernels over the pointer table, on NVIDIA, AMD and Intel GPUs.

A step is one launch per mix of storage types (twice with clipping, plus two single-program launches) and one
single-program launch that closes it. Nothing depends on step, learning rate, shapes or the number of tensors, so
nothing is recompiled and a captured graph stays valid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from greedylr_fused.backends.base import staged
from greedylr_fused.formats import DType, Launch
from greedylr_fused.packing import Table

#: What PyTorch calls the devices that Triton compiles for ("cuda" is also AMD's).
_DEVICES = ("cuda", "xpu")
#: Threads per program of every kernel.
_THREADS = 128
#: How kernels are compiled. Where decisions are compared bit for bit with Python floats, nothing may be contracted.
STREAM_OPTIONS = {"num_warps": _THREADS // 32, "enable_fp_fusion": True}
CONTROL_OPTIONS = {"num_warps": _THREADS // 32, "enable_fp_fusion": False}
#: The interpreter pays per operation, not per element.
_INTERPRETED_BLOCK = 1024


def blocks(dtypes: Sequence[DType]) -> tuple[int, int]:
    """Elements per iteration of the 16-byte path and of the path for what is left, for streams of these types.

    Every thread takes 16 bytes of the widest stream and one element on the other path: with more than that, Triton
    lays out narrow and wide accesses differently and moves values between threads through shared memory.
    """
    widest = max({DType.F64: 8, DType.F32: 4}.get(dtype, 2) for dtype in dtypes)
    return _THREADS * (16 // widest), _THREADS


def _guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes `device` current: Triton launches on the current device, whatever the pointers say."""
    if device.type == "cpu":  # the interpreter computes in numpy, which warns where a GPU returns inf or NaN
        import numpy

        return numpy.errstate(all="ignore")
    current: contextlib.AbstractContextManager[Any] = getattr(torch, device.type).device(device)
    return current


class _Kernel:
    """A kernel bound to a grid and to arguments that do not change, compiled at its first call.

    Later calls go straight to the launcher: `JITFunction.run` spends most of its time on finding out that it already
    has this kernel.
    """

    def __init__(self, function: Any, programs: int, args: Sequence[Any], **options: Any) -> None:
        self._function, self._grid, self._args, self._options = function, (programs, 1, 1), tuple(args), options
        self._launch: Callable[..., None] | None = None

    def __call__(self) -> None:
        if self._launch is not None:
            self._launch(*self._args)
            return
        compiled = self._function[self._grid](*self._args, **self._options)
        if compiled is not None:  # the interpreter compiles nothing
            self._launch = compiled[self._grid]


class TritonBackend:
    """Runs the step of one table; see `greedylr_fused.backends.base.Backend`.

    Args:
        table: its tensors must stay where they are for the life of this object.

    Attributes:
        chunk_size: elements per program; a multiple of 16.
    """

    name: ClassVar[str] = "triton"
    chunk_size: ClassVar[int] = 16384

    def __init__(self, table: Table) -> None:
        import triton.language as tl

        from greedylr_fused.backends import triton_control, triton_elements

        types = {DType.F32: tl.float32, DType.F64: tl.float64, DType.BF16: tl.bfloat16, DType.F16: tl.float16}
        interpreted = triton_elements.INTERPRETED.value
        self._device = table.control.device
        n_tensors, n_chunks = table.numel.numel(), table.chunk_tensor.numel()
        sums = torch.empty(n_chunks, dtype=torch.float64, device=self._device)
        nonfinite = torch.empty(n_chunks, dtype=torch.int32, device=self._device)
        work = (table.chunk_tensor, table.chunk_index)

        def shape(*dtypes: DType) -> tuple[int, int, int]:
            return (table.chunk, *((_INTERPRETED_BLOCK,) * 2 if interpreted else blocks(dtypes)))

        def update(at: Launch) -> _Kernel:
            mix = (at.param, at.grad, at.state)
            tensors: tuple[Tensor, ...] = (table.ptrs, table.numel, table.group, table.hyper, table.steps, *work)
            args = (*tensors, table.control, at.first, n_tensors, *(types[d] for d in mix), *shape(*mix))
            return _Kernel(triton_elements.update_kernel, at.count, args, **STREAM_OPTIONS)

        def measure(at: Launch) -> _Kernel:
            args = (table.ptrs, table.numel, *work, sums, nonfinite, at.first, n_tensors, types[at.grad])
            return _Kernel(triton_elements.measure_kernel, at.count, (*args, *shape(at.grad)), **STREAM_OPTIONS)

        self._updates = [update(at) for at in table.launches if at.count]
        self._measures = [measure(at) for at in table.launches if at.count]
        finish_args = (sums, nonfinite, table.control, n_chunks, 1024)
        self._measures.append(_Kernel(triton_control.finish_kernel, 1, finish_args, **CONTROL_OPTIONS))
        self._decide = _Kernel(triton_control.decide_kernel, 1, (table.control,), **CONTROL_OPTIONS)
        commit_args = (table.control, table.ptrs, table.steps, n_tensors, 1024)
        self._commit = _Kernel(triton_control.commit_kernel, 1, commit_args, **CONTROL_OPTIONS)

    def _run(self, *kernels: _Kernel) -> None:
        with _guard(self._device):
            for kernel in kernels:
                kernel()

    def measure(self) -> None:
        self._run(*self._measures, self._decide)

    def decide(self) -> None:
        self._run(self._decide)

    def update(self) -> None:
        self._run(*self._updates, self._commit)

    @staticmethod
    def send(target: Tensor, words: Tensor) -> Tensor | None:
        return staged(target, words)

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why it cannot run on `device`, None if it can."""
        try:
            from greedylr_fused.backends.triton_elements import INTERPRETED
        except ImportError as error:
            return f"triton cannot be imported: {error}"
        interpreted = INTERPRETED.value
        if device.type == "cpu" and not interpreted:
            return (
                "triton compiles for GPUs only; set TRITON_INTERPRET=1 in the environment before importing it to run "
                "its interpreter on CPU tensors (slow, for tests), or use the backend 'cpu'"
            )
        if device.type in _DEVICES and interpreted:
            return f"TRITON_INTERPRET=1 runs kernels on the CPU, which cannot follow {device.type} addresses; unset it"
        if device.type not in ("cpu", *_DEVICES):
            return f"triton has no backend for devices of type {device.type!r}, only for {', '.join(_DEVICES)}"
        return None
