"""The table: addresses, sizes, hyper-parameters and work list of one optimizer, in memory that does not move.

Built once; at each step `refresh()` compares where the gradients lie with where they lay and uploads the row of
addresses only if one moved. What a kernel sees is addresses; what the reference backend sees is the same tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.control import Control
from greedylr_fused.entry import Entry
from greedylr_fused.formats import EMPTY, MOMENTS, Hyper, Launch, Row, real


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
        self._staged: dict[int, Tensor] = {}
        self.captured: list[Tensor] = []

    def _upload(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cpu").to(self.device)

    def _pack_steps(self) -> None:
        counts = [
            torch.as_tensor(e.state["step"], dtype=torch.float32, device=self.device).reshape(()) for e in self.entries
        ]
        self.steps = torch.stack(counts) if counts else torch.zeros(0, dtype=torch.float32, device=self.device)
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
            False if a gradient came in another dtype that is computed as it is: build a new table.

        Raises:
            RuntimeError: a gradient is sparse, has no memory, or has another shape than its parameter.
        """
        self._staged.clear()
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
                grad = self._stage(i, grad)
            grads[i] = grad.data_ptr() or self._without_address(i, grad)
        hyper = [[*map(float, g["betas"]), g["eps"], g["weight_decay"], float(g["maximize"]), 0.0] for g in groups]
        self._grads = self._send(self.ptrs[Row.GRAD], self._grads, grads)
        self._hyper = self._send(self.hyper, self._hyper, hyper)
        for entry, address in zip(self.entries, grads, strict=True):
            if address and entry.dense_copy is not None:
                entry.dense_copy.copy_(entry.param)
        return True

    def release(self) -> None:
        """After the step: write dense copies back, let go of temporary gradients, and tell autograd, which a kernel
        writes behind the back of, that the parameters have changed.
        """
        self._staged.clear()
        stepped = [entry for entry, address in zip(self.entries, self._grads, strict=True) if address]
        increment_version([entry.param for entry in stepped])
        for entry in stepped:
            if entry.dense_copy is not None:
                entry.param.copy_(entry.dense_copy)

    def gradient(self, i: int) -> Tensor | None:
        """What tensor i is updated with: its gradient, or the copy in the parameter's strides; None if it has none."""
        grad = self._staged.get(i, self.entries[i].param.grad)
        return None if grad is None else real(grad)

    def _stage(self, i: int, grad: Tensor) -> Tensor:
        entry = self.entries[i]
        copy = torch.empty_like(entry.target, dtype=entry.grad_dtype).copy_(grad)
        self._staged[i] = copy
        return copy

    def _without_address(self, i: int, grad: Tensor) -> int:
        if grad.numel() == 0:
            return EMPTY
        if grad._is_zerotensor():  # stands for zeros that it has no memory for
            return self._stage(i, grad).data_ptr()
        raise RuntimeError(
            f"FusedAdamW: got a gradient of type {type(grad).__name__} whose memory is gone, allowed are plain dense "
            "tensors; run backward() again, or step this parameter with torch.optim.AdamW"
        )

    def _send(self, target: Tensor, sent: Any, values: Any) -> Any:
        """Copy the values to the device if they are not those sent last; returns what is there now."""
        capturing = target.is_cuda and torch.cuda.is_current_stream_capturing()
        if values == sent and not capturing and not self.captured:
            return values
        # The allocator of pinned memory hands a block out again only after the copy from it is done, so nothing waits
        # here. A captured graph repeats its copy at each replay: its block is kept for good, and from then on every
        # other step sends its own values, since a replay may have come between.
        host = torch.tensor(values, dtype=target.dtype, device="cpu", pin_memory=target.is_cuda)
        target.copy_(host, non_blocking=target.is_cuda)
        if capturing:
            self.captured.append(host)
        return values
