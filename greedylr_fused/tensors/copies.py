"""Copies of float32 parameters in 16 bits: what a model computes with while its optimizer keeps the masters.

The step that updates a parameter also rounds it, to nearest even, into its copy: on the CPU in the same pass over
memory, elsewhere right after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.tensors.dtensor import local, local_part, spec_of
from greedylr_fused.tensors.entry import Entry
from greedylr_fused.tensors.formats import Row

#: The row of a table that holds the addresses of copies of a dtype.
ROWS = {torch.bfloat16: Row.COPY_BF16, torch.float16: Row.COPY_F16}


class Copies:
    """The copies of one optimizer's parameters.

    Attributes:
        of: parameter -> its copy.
    """

    def __init__(self) -> None:
        self.of: dict[Tensor, Tensor] = {}
        self._all: list[tuple[Entry, Tensor]] = []
        self._by_torch: list[tuple[Entry, Tensor]] = []
        self._memory: list[Any] = []

    def keep(self, pairs: Iterable[tuple[Tensor, Tensor]], params: Collection[Tensor]) -> None:
        """Write these copies, and keep them instead of earlier ones: see `FusedAdamW.keep_copies`.

        Args:
            pairs: (parameter, copy).
            params: those of the optimizer.
        """
        chosen: dict[Tensor, Tensor] = {}
        for pair in pairs:
            param, copy = _both(pair)
            if param not in params:
                raise ValueError(
                    "keep_copies: expected parameters in the optimizer's param_groups, got one of shape "
                    f"{tuple(param.shape)} that is not; put the optimizer's parameter first and its copy second"
                )
            if param in chosen or any(copy is other for other in chosen.values()):
                raise ValueError(
                    f"keep_copies: expected one copy of each parameter, got a tensor of shape {tuple(copy.shape)} in "
                    "two pairs; leave tied parameters out after their first"
                )
            check(param, copy)
            chosen[param] = copy
        with torch.no_grad():
            _copy([(check(param, copy), local(param)) for param, copy in chosen.items()])
        self.of = chosen

    def place(self, entries: Sequence[Entry], in_kernel: bool) -> dict[Row, list[int]]:
        """Return rows of a table over these entries: addresses of copies that kernels write; 0 for none.

        Args:
            entries: in the table's order.
            in_kernel: whether there are kernels that write copies.
        """
        rows = {row: [0] * len(entries) for row in ROWS.values()}
        self._all, self._by_torch = [], []
        for i, entry in enumerate(entries):
            copy = self.of.get(entry.param)
            if copy is None:
                continue
            memory = check(entry.param, copy)
            self._all.append((entry, copy))
            if in_kernel and entry.dense_copy is None and memory.stride() == entry.strides and memory.numel():
                rows[ROWS[memory.dtype]][i] = memory.data_ptr()
            else:
                self._by_torch.append((entry, memory))
        self._memory = self._memory_now()
        return rows

    def moved(self) -> bool:
        """Return whether a copy has another address, dtype, shape or strides than when it was placed."""
        return bool(self.of) and self._memory_now() != self._memory

    def finish(self) -> None:
        """Write, after the update, the copies that no kernel wrote, and tell autograd which copies have changed."""
        if self.of:
            _copy([(copy, entry.memory) for entry, copy in self._by_torch if entry.param.grad is not None])
            increment_version([copy for entry, copy in self._all if entry.param.grad is not None])

    def _memory_now(self) -> list[Any]:
        parts = map(local, self.of.values())
        return [(part.data_ptr(), part.dtype, part.shape, part.stride()) for part in parts]


def check(param: Tensor, copy: Tensor) -> Tensor:
    """Return the memory on this rank of a tensor that is to be a copy of the parameter.

    Raises:
        TypeError: it has a dtype that is not written, or was made within inference_mode.
        ValueError: it has another shape or device.
        RuntimeError: it is distributed in another way.
    """
    if param.dtype != torch.float32 or copy.dtype not in ROWS:
        raise TypeError(
            f"keep_copies: expected bfloat16 and float16 copies of float32 parameters, got a {copy.dtype} copy of a "
            f"{param.dtype} parameter; convert one of them"
        )
    if copy.shape != param.shape or copy.device != param.device:
        raise ValueError(
            f"keep_copies: expected the shape {tuple(param.shape)} and device {param.device} of the parameter, got a "
            f"copy of shape {tuple(copy.shape)} on {copy.device}; use torch.empty_like"
        )
    if copy.is_inference():
        raise TypeError(
            "keep_copies: expected copies made outside of torch.inference_mode(), got one made within it, which "
            "autograd does not follow; clone() it outside"
        )
    return local(copy) if spec_of(param) is None else local_part("a copy", copy, param)


def _both(pair: Any) -> tuple[Tensor, Tensor]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(tensor, Tensor) for tensor in pair):
        return pair[0], pair[1]
    raise TypeError(
        f"keep_copies: expected pairs (parameter, copy) of tensors, got a {type(pair).__name__}; write zip(masters, "
        "model.parameters())"
    )


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        targets, sources = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(targets, sources)
