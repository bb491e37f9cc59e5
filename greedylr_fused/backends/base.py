"""What every backend offers: four calls over one table, none of which reads a value back to the host."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from greedylr_fused.tensors import TensorTable


class Backend(Protocol):
    """Runs the steps of one table: `measure` with clipping or skip_nonfinite, `clip` under AMP without them, then
    `update`. Where ranks add up their sums or losses in between, `clip` and `control` are calls of their own.
    """

    name: ClassVar[str]
    """As in `FusedAdamW(backend=...)`."""
    chunk_size: ClassVar[int]
    """Elements per work item; the table is built with it."""
    writes_copies: ClassVar[bool]
    """Whether `update` writes the rows COPY_* of the table; if not, the table does after it."""

    def __init__(self, table: TensorTable) -> None: ...

    def measure(self, then_clip: bool = True) -> None:
        """One read of all gradients: `grad_sq_sum` and, with the table's `l1`, `grad_abs_sum` (weighted by
        `norm_weight`, accumulated in float64, fixed order), and `grad_nonfinite`; then, with `then_clip`, what `clip`
        does.
        """

    def clip(self) -> None:
        """G1..G4: norm, clip coefficient, multiplier, skip flag."""

    def update(self, then_control: bool = True) -> None:
        """A1..A6 for every tensor that has a gradient, nothing if `skip` is set; then, with `then_control`, what
        `control` does. Otherwise `control` must follow, before which nobody may read the step counts.
        """

    def control(self) -> None:
        """Unless `skip` is set: the step counts, and C1..C9: the loss decides the next LR."""

    @staticmethod
    def send(target: Tensor, words: Tensor) -> Tensor | None:
        """Copy `words`, a contiguous CPU tensor of target's shape and 8-byte dtype, to the device without waiting.

        The caller may overwrite `words` as soon as this returns.

        Returns:
            Memory that a graph captured here reads at each replay and that must be kept for it; None if there is none.
        """

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why it cannot run on that device, or None if it can."""


def staged(target: Tensor, words: Tensor) -> Tensor | None:
    """`Backend.send` by torch's own means, through pinned memory.

    The allocator of pinned memory hands a block out again only after the copy from it is done, so nothing waits.
    """
    if target.device.type == "cpu":
        target.copy_(words)
        return None
    staging = words.pin_memory()
    target.copy_(staging, non_blocking=True)
    return staging
