"""How much memory the tensors of an optimizer take, before it has made any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors.dtensor import local
from greedylr_fused.tensors.eight_bit import GROUP
from greedylr_fused.tensors.storage import storage_of
from greedylr_fused.tensors.tuning import offset_dtype


@dataclass(frozen=True)
class Memory:
    """Bytes of an optimizer's tensors on this rank, by kind, and the elements of its parameters.

    Attributes:
        elements: of all parameters here, frozen ones included.
        parameters: bytes of these.
        gradients: bytes of one gradient for each that is not frozen.
        moments: bytes of codes, scales and float moments.
        remainders: bytes of what parameters lack of their float32 masters.
        offsets: bytes of what a tuner keeps of them; 0 without one.
        backup: bytes of what a level search goes back to after trials, here or on the host; 0 once it is over.
    """

    elements: int
    parameters: int
    gradients: int
    moments: int
    remainders: int
    offsets: int = 0
    backup: int = 0

    @property
    def total(self) -> int:
        """Return the sum of all kinds."""
        return self.parameters + self.gradients + self.moments + self.remainders + self.offsets + self.backup

    def __repr__(self) -> str:
        each = max(self.elements, 1)
        size, unit = (self.total / 1e9, "GB") if self.total >= 1e9 else (self.total / 1e6, "MB")
        extras = tuple(kind for kind in ("offsets", "backup") if getattr(self, kind))
        kinds = ("parameters", "gradients", "moments", "remainders", *extras)
        parts = ", ".join(f"{getattr(self, kind) / each:.4g} {kind}" for kind in kinds)
        return f"Memory({size:.4g} {unit} for {self.elements:,} elements, {self.total / each:.4g} bytes each: {parts})"


def memory_of(
    groups: Sequence[Mapping[str, Any]],
    state_dtype: torch.dtype | None,
    *,
    tuned: bool = False,
    backed_up: Mapping[Tensor, Tensor] | None = None,
) -> Memory:
    """Return the memory that parameters take, and that gradients and states take or will take.

    Args:
        groups: the optimizer's.
        state_dtype: as it was constructed.
        tuned: whether it has a tuner.
        backed_up: the 16-bit copies that a backup has beside all else, see `Copies.of`; None if there is no backup.
    """
    group_of = {param: group for group in reversed(groups) for param in group["params"]}
    sizes = [_sizes(param, group, state_dtype, tuned) for param, group in group_of.items()]
    backup = 0 if backed_up is None else backup_bytes(groups, state_dtype, backed_up)
    sums = [sum(column) for column in zip(*sizes, strict=True)] if sizes else [0] * 6
    return Memory(*(*sums, backup))


def backup_bytes(
    groups: Sequence[Mapping[str, Any]], state_dtype: torch.dtype | None, copies: Mapping[Tensor, Tensor]
) -> int:
    """Return the bytes of a `Backup` once all parameters that are not frozen have a state: these parameters, moments,
    remainders, counts of steps, and copies in 16 bits.

    Args:
        groups: the optimizer's.
        state_dtype: as it was constructed.
        copies: parameter -> its copy; see `Copies.of`.
    """
    group_of = {param: group for group in reversed(groups) for param in group["params"] if param.requires_grad}
    total = sum(local(copies[param]).nbytes for param in group_of if param in copies)
    for param, group in group_of.items():
        _, parameter, _, moments, remainder, _ = _sizes(param, group, state_dtype, False)
        total += parameter + moments + remainder + torch.float32.itemsize
    return total


def _sizes(param: Tensor, group: Mapping[str, Any], state_dtype: torch.dtype | None, tuned: bool) -> tuple[int, ...]:
    """Return the fields of `Memory` of one parameter."""
    here = local(param)
    n = here.numel()
    if not param.requires_grad:
        return n, n * here.itemsize, 0, 0, 0, 0
    own = storage_of(param, group, state_dtype)
    moments = n * own.moments.itemsize * (3 if group["amsgrad"] else 2)
    if own.moments is torch.int8:
        moments += 2 * here.shape[0] * (math.prod(here.shape[1:]) // GROUP) * torch.float32.itemsize
    gradient = (getattr(param, "grad_dtype", None) or param.dtype).itemsize
    remainder = n * own.remainder.itemsize if own.remainder is not None else 0
    offset = n * offset_dtype(param).itemsize if tuned else 0
    return n, n * here.itemsize, n * gradient, moments, remainder, offset
