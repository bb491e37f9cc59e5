"""Backend `triton`: the step as Triton kernels over the pointer table, on NVIDIA, AMD and Intel GPUs.

A step is one launch per mix of storage types, and with clipping one before it per type of gradient; the last program of
the last launch closes the step. Nothing depends on step, learning rate, shapes or the number of tensors, so nothing is
recompiled and a captured graph stays valid.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from greedylr_fused.backends.base import Staging, absent
from greedylr_fused.backends.triton.mixes import THREADS, in_one_piece, shape, types, types_of
from greedylr_fused.capture import capturing
from greedylr_fused.control import SLOT, add_pending
from greedylr_fused.tensors import CHUNK, BackupTable, DType, TensorTable, real

#: Types of the devices that Triton compiles for ("cuda" is also AMD's).
_DEVICES = ("cuda", "xpu")
#: How kernels are compiled: without contraction, since every launch may end in decisions, which are compared bit for
#: bit with Python floats.
OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": False}


def _guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make `device` current: Triton launches on the current device, whatever the pointers say."""
    if device.type == "cpu":  # the interpreter computes in numpy, which warns where a GPU returns inf or NaN
        import numpy

        return numpy.errstate(all="ignore")
    current: contextlib.AbstractContextManager[Any] = getattr(torch, device.type).device(device)
    return current


class _Kernel:
    """A kernel bound to a grid and to arguments that do not change, compiled at its first call.

    Later calls go straight to the launcher: `JITFunction.run` spends most of its time on finding out that it already
    has this kernel.

    Args:
        function: decorated by Triton.
        programs: how many run.
        args: its arguments.
        places: those among them where each call puts the values that it is given.
    """

    def __init__(self, function: Any, programs: int, args: Sequence[Any], places: Sequence[int] = ()) -> None:
        self._function, self._grid, self._args, self._places = function, (programs, 1, 1), list(args), places
        self._launch: Callable[..., None] | None = None

    def __call__(self, *values: Any) -> None:
        args = self._args
        if self._places:  # nothing keeps a loss longer than its call: it may hold a whole graph
            args = args.copy()
            for place, value in zip(self._places, values, strict=True):
                args[place] = value
        if self._launch is not None:
            self._launch(*args)
        else:
            compiled = self._function[self._grid](*args, **OPTIONS)
            if compiled is not None:  # the interpreter compiles nothing
                self._launch = compiled[self._grid]


class _Closing:
    """A kernel that closes the step: one without a loss, and one for each type that a loss had so far.

    Args:
        function, programs: as in `_Kernel`.
        before: its arguments up to the loss.
        after: those between the loss and the last, which says whether there is one.
        control: stands for the loss where there is none.
    """

    def __init__(
        self, function: Any, programs: int, before: Sequence[Any], after: Sequence[Any], control: Tensor
    ) -> None:
        self._bound = function, programs
        self._before, self._after = before, after
        self._kernels: dict[torch.dtype | None, _Kernel] = {
            None: _Kernel(*self._bound, (*before, control, *after, False))
        }

    def __call__(self, loss: Tensor | None = None) -> None:
        dtype = None if loss is None else loss.dtype
        if dtype not in self._kernels:
            args = (*self._before, None, *self._after, True)
            self._kernels[dtype] = _Kernel(*self._bound, args, [len(self._before)])
        self._kernels[dtype](loss)


@functools.cache
def _no_driver() -> str | None:
    """Return why Triton has no driver, which it compiles with the machine's C compiler, or None; asked once."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of a subprocess, an import, a compiler, a device: whatever it is, nothing runs
        return f"triton's driver cannot be built or finds no device: {error}; it needs a C compiler and Python.h"
    return None


class TritonBackend:
    """The steps of one table; see `greedylr_fused.backends.base.Backend`.

    Args:
        table: its tensors must stay where they are for the life of this object.

    Attributes:
        chunk_size: elements per program; a multiple of 16.
    """

    name: ClassVar[str] = "triton"
    chunk_size: ClassVar[int] = 16384
    writes_copies: ClassVar[bool] = False

    def __init__(self, table: TensorTable) -> None:
        from greedylr_fused.backends.triton import backup, control

        self.table, self._device = table, table.control.device
        self.memory: list[Tensor] = []
        self._n_tensors, self._staging = len(table.entries), Staging(table)
        self._tuned = table.tuned.tuner is not None
        self._clip = _Kernel(control.clip_kernel, 1, (table.control, self._tuned))
        steps = self._plan_steps()
        self._snapshot = None if table.snapshot is None else table.snapshot.address
        closing = (table.control, table.curve, self._snapshot, table.ptrs, *steps)
        self._control = _Closing(control.control_kernel, 1, closing, (self._tuned, table.searches), table.control)
        self._observes: dict[Any, _Kernel] = {}
        copying = (table.control, *(None,) * 6, CHUNK, backup.BLOCK, backup.REST)
        self._backup = _Kernel(backup.backup_kernel, backup.PROGRAMS, copying, range(1, 7))
        self._pending = (table.control[SLOT["loss_sum"]], table.control[SLOT["loss_weight"]])
        # Kernels compile at their first call: those of a process of several ranks never do in a single one.
        self._measures = {then_clip: self._plan_measures(then_clip) for then_clip in (False, True)}
        self._updates = {then_control: self._plan_updates(steps, then_control) for then_control in (False, True)}

    def _zeros(self, count: int, dtype: torch.dtype) -> Tensor:
        self.memory.append(torch.zeros(count, dtype=dtype, device=self._device))
        return self.memory[-1]

    def _plan_steps(self) -> tuple[int, Tensor, int]:
        """Return the number of tensors, the list of those whose step `control` counts, and its length."""
        sizes = [real(entry.target).numel() for entry in self.table.entries]
        others = [i for i, size in enumerate(sizes) if not 0 < size <= self.table.chunk]
        listed = torch.tensor(others, dtype=torch.int32, device="cpu").to(self._device)
        self.memory.append(listed)
        return self._n_tensors, listed, len(others)

    def _plan_updates(self, steps: tuple[int, Tensor, int], then_control: bool) -> list[_Kernel | _Closing]:
        """Plan one launch per mix; with `then_control` the last one closes the step."""
        from greedylr_fused.backends.triton.update import update_kernel

        table = self.table
        if not table.launches:
            return [self._control] if then_control else []
        kernels: list[_Kernel | _Closing] = []
        counter = self._zeros(1, torch.int32)
        for at in table.launches:
            mix = (at.param, at.grad, at.state)
            tensors = (table.ptrs, table.numel, table.chunk_tensor, table.chunk_index, table.control, at.first)
            scalars = (table.group, table.hyper, table.curve, self._snapshot)
            streams = (*mix, DType.F32) if self._tuned else mix  # with offsets, which are as wide or not as wide
            constants = (*types_of(mix).values(), in_one_piece(table, mix), *shape(table, streams), self._tuned)
            before = (*tensors, *scalars, *steps, counter)
            if then_control and at is table.launches[-1]:
                kernels.append(
                    _Closing(update_kernel, at.count, before, (*constants, True, table.searches), table.control)
                )
            else:
                kernels.append(
                    _Kernel(update_kernel, at.count, (*before, table.control, *constants, False, False, False))
                )
        return kernels

    def _plan_measures(self, then_clip: bool) -> list[_Kernel]:
        """Plan one launch per type of gradient, with a tuner also of parameter, over neighbouring mixes that share it;
        the last one adds up, and with `then_clip` clips.
        """
        from greedylr_fused.backends.triton.control import conclude_kernel
        from greedylr_fused.backends.triton.measure import GROUP, measure_kernel

        table = self.table
        spans = []  # (types, first chunk, chunks, first group of chunks)
        n_groups = 0
        for read, mixes in itertools.groupby(table.launches, key=lambda at: (at.grad, at.param)[: 1 + self._tuned]):
            first, *more = mixes
            count = sum(at.count for at in (first, *more))
            spans.append((read, first.first, count, n_groups))
            n_groups += -(-count // GROUP)
        n_sums = table.chunk_tensor.numel() + n_groups
        l1 = table.l1
        sums = (self._zeros(n_sums * (1 + l1 + 3 * self._tuned), torch.float64), self._zeros(n_sums, torch.int32))
        if not spans:
            return [_Kernel(conclude_kernel, 1, (table.control, *sums, 0, then_clip, l1, self._tuned))]
        kernels = []
        counters = self._zeros(1 + n_groups, torch.int32)
        for read, begin, count, group in spans:
            tensors = (table.ptrs, table.numel, table.chunk_tensor, table.chunk_index, table.control, begin)
            work = (table.norm_weight, self._n_tensors, table.chunk_tensor.numel(), *sums, counters, group, n_groups)
            closes = group == spans[-1][3]
            grad, streams = types(read)[0], (*read, DType.F32) if self._tuned else read
            param = types_of((read[1], read[0], DType.F32)) if self._tuned else {"P": None, "R": None}
            constants = (
                grad,
                param["P"],
                param["R"],
                *shape(table, streams),
                GROUP,
                closes,
                then_clip,
                l1,
                self._tuned,
            )
            args = (*tensors, *work, table.group, table.hyper, *constants)
            kernels.append(_Kernel(measure_kernel, count, args))
        return kernels

    def _run(self, *kernels: _Kernel | _Closing, loss: Tensor | None = None) -> None:
        with _guard(self._device):
            for kernel in kernels:
                kernel(loss)

    def measure(self, then_clip: bool = True) -> None:
        self._run(*self._measures[then_clip])

    def clip(self) -> None:
        self._run(self._clip)

    def update(self, then_control: bool = True, loss: Tensor | None = None) -> None:
        self._run(*self._updates[then_control], loss=loss)

    def control(self, loss: Tensor | None = None) -> None:
        self._run(self._control, loss=loss)

    def observe(self, loss: Tensor, weight: float | Tensor) -> None:
        from greedylr_fused.backends.triton.control import observe_kernel

        kind = loss.dtype, weight.dtype if isinstance(weight, Tensor) else None
        if kind not in self._observes:
            if capturing(self._device):  # nothing is compiled and loaded now
                add_pending(*self._pending, loss, weight)
                return
            given = kind[1] is not None
            self._observes[kind] = _Kernel(observe_kernel, 1, (self.table.control, None, None, given), (1, 2))
        if not isinstance(weight, Tensor):
            (weight,) = struct.unpack("<q", struct.pack("<d", -abs(weight)))
        with _guard(self._device):
            self._observes[kind](loss, weight)

    def backup(self, backup: BackupTable) -> None:
        work = (backup.addresses, backup.sizes, backup.chunk_tensor, backup.chunk_index)
        with _guard(self._device):
            self._backup(*work, backup.sizes.numel(), backup.chunk_tensor.numel())

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        return self._staging.send(target, words)

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on that device, or None if it can."""
        try:
            from greedylr_fused.backends.triton.access import INTERPRETED
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
        return None if interpreted else absent(device) or _no_driver()
