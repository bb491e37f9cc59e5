"""The table: addresses, sizes, hyper-parameters and work list of one optimizer, in memory that does not move.

Built once; at each step `refresh()` compares where the gradients lie with where they lay and uploads the row of
addresses only if one moved. What a kernel sees is addresses; what the reference backend sees is the same tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.control import Control


class DType(IntEnum):
    """Storage types as the kernels name them (`csrc/core/common.h`)."""

    F32 = 0
    F64 = 1
    BF16 = 2
    F16 = 3


class Row(IntEnum):
    """Rows of `Table.ptrs`."""

    PARAM = 0
    GRAD = 1
    EXP_AVG = 2
    EXP_AVG_SQ = 3
    MAX_EXP_AVG_SQ = 4


class Hyper(IntEnum):
    """Columns of `Table.hyper`."""

    BETA1 = 0
    BETA2 = 1
    EPS = 2
    WEIGHT_DECAY = 3
    MAXIMIZE = 4
    SPARE = 5


DTYPES = {torch.float32: DType.F32, torch.float64: DType.F64, torch.bfloat16: DType.BF16, torch.float16: DType.F16}
_HALVES = (DType.BF16, DType.F16)
#: (parameter, gradient, moments) storage types that every backend computes.
MIXES = frozenset(
    [(t, t, t) for t in DType]
    + [(h, g, s) for h in _HALVES for g in (h, DType.F32) for s in (h, DType.F32)]
    + [(DType.F32, DType.F32, DType.BF16)]
)
#: Address of an empty gradient: not null, since the tensor does have one, and never read.
EMPTY = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@dataclass(frozen=True)
class Launch:
    """The chunks `first` to `first + count` of one mix of storage types."""

    param: DType
    grad: DType
    state: DType
    first: int
    count: int


def real(tensor: Tensor) -> Tensor:
    """The tensor, or its real view if complex (last dimension 2: real, imaginary part)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class Entry:
    """One parameter with its state, and the dense memory in which it is updated."""

    def __init__(self, param: Tensor, state: dict[str, Any], group: int, amsgrad: bool) -> None:
        self.param, self.state, self.group = param, state, group
        self.moments = MOMENTS if amsgrad else MOMENTS[:2]
        self.strides = torch.empty_like(param, device="meta").stride()
        # A parameter with holes or overlaps cannot be walked as flat memory: it is updated in a dense copy.
        self.dense_copy = None if self.strides == param.stride() else torch.empty_like(param)
        for name in self.moments:
            state[name] = self._placed(name, state[name])
        grad = param.grad
        self.grad_dtype = grad.dtype if grad is not None and self.computes(grad.dtype) else param.dtype

    def _placed(self, name: str, moment: Tensor) -> Tensor:
        if moment.device != self.param.device or moment.shape != self.param.shape:
            raise RuntimeError(
                f"FusedAdamW state {name!r}: got shape {tuple(moment.shape)} on {moment.device}, allowed is "
                f"{tuple(self.param.shape)} on {self.param.device} like its parameter; move it back before step()"
            )
        if moment.stride() == self.strides:
            return moment
        return torch.empty_like(self.target, dtype=moment.dtype).copy_(moment)

    @property
    def target(self) -> Tensor:
        return self.param if self.dense_copy is None else self.dense_copy

    def computes(self, grad_dtype: torch.dtype) -> bool:
        return self._codes(grad_dtype) in MIXES

    def _codes(self, grad_dtype: torch.dtype) -> tuple[DType | None, ...]:
        dtypes = (self.param.dtype, grad_dtype, self.state["exp_avg"].dtype)
        return tuple(DTYPES.get(dtype.to_real()) for dtype in dtypes)

    @property
    def mix(self) -> tuple[DType, DType, DType]:
        if not self.computes(self.grad_dtype):
            raise TypeError(
                f"FusedAdamW: got a {self.param.dtype} parameter with {self.state['exp_avg'].dtype} moments, allowed "
                "are float32, float64, bfloat16 and float16 parameters with moments of their own dtype, 16-bit ones "
                "with float32 moments and float32 ones with bfloat16 moments; convert the parameter or set state_dtype"
            )
        return self._codes(self.grad_dtype)  # type: ignore[return-value]

    def takes(self, grad: Tensor) -> bool:
        """Whether the gradient can be read in place, element by element beside the parameter."""
        if grad.dtype != self.grad_dtype or grad.is_neg() or grad.is_conj():
            return False
        strides = grad.stride()
        return strides == self.strides or all(
            n == 1 or a == b for n, a, b in zip(grad.shape, strides, self.strides, strict=True)
        )


class Table:
    """Everything a backend needs; addresses stay valid for the table's life.

    Args:
        entries: parameters in the optimizer's order; their state holds `step`, `exp_avg`, `exp_avg_sq` and with
            amsgrad `max_exp_avg_sq`. `step` is replaced by a 0-d view into `steps`.
        control: the control vector; its device is the table's.
        chunk: elements per work item.

    Attributes:
        ptrs: int64 [5, N], see `Row`. A gradient address of 0 means: no gradient at this step.
        numel: int64 [N], complex numbers counted twice.  group: int32 [N].
        hyper: float64 [G, 6], see `Hyper`.  steps: float32 [N].
        chunk_tensor, chunk_index: int32 [C]; chunk c covers `chunk` elements of its tensor from
            `chunk_index[c] * chunk` on, or those that are left.
        launches: one per mix of storage types.
    """

    def __init__(self, entries: Sequence[Entry], control: Control, chunk: int) -> None:
        self.entries = sorted(entries, key=lambda entry: entry.mix)  # stable
        self.chunk = chunk
        self.control = control.vector
        self.n_groups = control.n_groups
        self.device = self.control.device
        moments = [[e.state[name] if name in e.moments else None for e in self.entries] for name in MOMENTS]
        rows = [[real(e.target).data_ptr() for e in self.entries]]
        rows += [[0 if t is None else real(t).data_ptr() for t in row] for row in moments]
        self._grads = [0] * len(self.entries)
        self.ptrs = self._upload([rows[0], self._grads, *rows[1:]], torch.int64)
        self.group = self._upload([e.group for e in self.entries], torch.int32)
        self._hyper = [[-1.0] * len(Hyper)] * self.n_groups
        self.hyper = self._upload(self._hyper, torch.float64)
        self._pack_steps()
        self._list_work()
        self._objects = [e.param for e in self.entries] + [t for row in moments for t in row if t is not None]
        self._addresses = list(map(Tensor.data_ptr, self._objects))
        self._kept = [(e.state, [(name, e.state[name]) for name in (*e.moments, "step")]) for e in self.entries]
        self._staged: dict[int, Tensor] = {}
        self._captured: list[Tensor] = []

    def _upload(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)

    def _pack_steps(self) -> None:
        counts = [e.state["step"].to(self.device, torch.float32).reshape(()) for e in self.entries]
        self.steps = torch.stack(counts) if counts else torch.zeros(0, device=self.device)
        for entry, view in zip(self.entries, self.steps.unbind(), strict=True):
            entry.state["step"] = view

    def _list_work(self) -> None:
        numel = [real(e.param).numel() for e in self.entries]
        counts = [-(-n // self.chunk) for n in numel]
        self.numel = self._upload(numel, torch.int64)
        self.chunk_tensor = self._upload([i for i, count in enumerate(counts) for _ in range(count)], torch.int32)
        self.chunk_index = self._upload([c for count in counts for c in range(count)], torch.int32)
        self.launches: list[Launch] = []
        first = 0
        for (param, grad, state), members in itertools.groupby(range(len(numel)), key=lambda i: self.entries[i].mix):
            count = sum(counts[i] for i in members)
            if count:
                self.launches.append(Launch(param, grad, state, first, count))
            first += count

    def refresh(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Bring gradient addresses and hyper-parameters up to date, without waiting for the device.

        Returns:
            False if the table no longer describes these parameters and states (a tensor was replaced or moved, a
            gradient came in another dtype): build a new one.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        if not self._is_current():
            return False
        grads = list(self._grads)
        for i, entry in enumerate(self.entries):
            grad = entry.param.grad
            if grad is None:
                grads[i] = 0
                continue
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"FusedAdamW: got a gradient of layout {grad.layout}, allowed are dense gradients; use "
                    "torch.optim.SparseAdam for that parameter, or sparse=False in the embedding"
                )
            if not entry.takes(grad):
                if grad.dtype != entry.grad_dtype and entry.computes(grad.dtype):
                    return False
                grad = self._staged[i] = torch.empty_like(entry.target, dtype=entry.grad_dtype).copy_(grad)
            grads[i] = grad.data_ptr() or EMPTY
        if grads != self._grads:
            self._grads = grads
            self._send(self.ptrs[Row.GRAD], grads)
        hyper = [[*map(float, g["betas"]), g["eps"], g["weight_decay"], float(g["maximize"]), 0.0] for g in groups]
        if hyper != self._hyper:
            self._hyper = hyper
            self._send(self.hyper, hyper)
        for entry in self.entries:
            if entry.dense_copy is not None:
                entry.dense_copy.copy_(entry.param)
        return True

    def release(self) -> None:
        """After the step: write dense copies back, let go of temporary gradients, and tell autograd, which a kernel
        writes behind the back of, that the parameters have changed.
        """
        self._staged.clear()
        increment_version([entry.param for entry, grad in zip(self.entries, self._grads, strict=True) if grad])
        for entry in self.entries:
            if entry.dense_copy is not None:
                entry.param.copy_(entry.dense_copy)

    def gradient(self, i: int) -> Tensor | None:
        """What tensor i is updated with: its gradient, or the copy in the parameter's strides; None if it has none."""
        grad = self._staged.get(i, self.entries[i].param.grad)
        return None if grad is None else real(grad)

    def _is_current(self) -> bool:
        return list(map(Tensor.data_ptr, self._objects)) == self._addresses and all(
            state.get(name) is tensor for state, kept in self._kept for name, tensor in kept
        )

    def _send(self, target: Tensor, values: Any) -> None:
        # The allocator of pinned memory hands a block out again only after the copy from it is done, so nothing waits
        # here. A captured graph repeats the copy at each replay: its block is kept for good.
        host = torch.tensor(values, dtype=target.dtype, pin_memory=target.is_cuda)
        target.copy_(host, non_blocking=True)
        if target.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured.append(host)
