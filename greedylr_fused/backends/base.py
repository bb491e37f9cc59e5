"""The protocol of a backend: six calls over one table, none of which reads a value back to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from greedylr_fused.capture import capturing
from greedylr_fused.tensors import BackupTable, TensorTable


class Backend(Protocol):
    """The steps of one table: `measure` with clipping or skip_nonfinite, `clip` under AMP without them, or to skip
    spikes, then `update`. With several ranks, which add up their sums or losses in between, `clip` and `control` are
    calls of their own.
    """

    name: ClassVar[str]
    """The name in `FusedAdamW(backend=...)`."""
    chunk_size: ClassVar[int]
    """Elements per work item; the table is built with it."""
    writes_copies: ClassVar[bool]
    """True if `update` writes the copies that the rows COPY_* address; otherwise the table writes them afterwards."""

    @property
    def memory(self) -> Sequence[Tensor]:
        """Return the device memory that the backend owns."""

    table: TensorTable
    """The table, kept for the memory behind its addresses."""

    def __init__(self, table: TensorTable) -> None: ...

    def measure(self, then_clip: bool = True) -> None:
        """Read all gradients once: write `grad_sq_sum` and, with the table's `l1`, `grad_abs_sum` (weighted by
        `norm_weight`, accumulated in float64, fixed order), and `grad_nonfinite`. With `then_clip`, clip as well, but
        where spikes are skipped: that `clip` alone does.
        """

    def clip(self) -> None:
        """Compute norm, clip coefficient, multiplier and skip flag (G1..G4), then skip spikes (K1..K4)."""

    def update(self, then_control: bool = True, loss: Tensor | None = None) -> None:
        """Update every tensor that has a gradient (A1..A6), none if `skip` is set; with `then_control` do what
        `control` does. Without, `control` must follow, and nobody may read the step counts before it.
        """

    def control(self, loss: Tensor | None = None) -> None:
        """Count the step and decide the next LR (C1..C9, S1..S3); if `skip` is set, count a skipped step instead. Then
        write the table's snapshot, which there is on CUDA devices alone.

        Args:
            loss: read where it lies and observed with weight 1: one element of a type in `DTYPES`, on the table's
                device, in memory that no update writes to. None if what is pending is all there is.
        """

    def observe(self, loss: Tensor, weight: float | Tensor) -> None:
        """Add `weight * loss` (rounded once, as the sum is) and `weight` to what is pending; with weight 0, nothing.

        Args:
            loss: as for `control`, as it is at this call in the order of the stream.
            weight: a finite number >= 0, or such a tensor.
        """

    def backup(self, backup: BackupTable) -> None:
        """Do what the slot "backup" says in the order of the stream: 1, copy all that lives to what is kept; 2, put it
        back; else return at once, with no tensor touched. It is left as it is. Call it after the step's last write, of
        copies and of what is no flat memory too, between `refresh` and `release` of that table.
        """

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        """Copy `words`, a contiguous CPU tensor of target's shape and 8-byte dtype, to the device without waiting.

        The caller may overwrite `words` as soon as this returns.

        Returns:
            Memory to keep for a graph being captured, which reads it at each replay; None if there is none.
        """

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on that device, or None if it can."""


class Staging:
    """`Backend.send` by torch's own means, through pinned memory.

    The allocator of pinned memory hands a block out again only after the copy from it is done, so nothing waits. During
    a capture PyTorch before 2.11 cannot pin: one block for each kind of words is pinned with the table, and another
    when a graph has taken that.

    Args:
        table: what it sends are its gradient addresses and hyper-parameters.
    """

    def __init__(self, table: TensorTable) -> None:
        on_gpu = table.device.type == "cuda"
        self._spare = {words.shape: words.pin_memory() for words in table.words} if on_gpu else {}

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        """Do what `Backend.send` does."""
        if target.device.type == "cpu":
            target.copy_(words)
            return None
        if capturing(target.device) and words.shape in self._spare:
            staging = self._spare.pop(words.shape).copy_(words)
        else:
            staging = words.pin_memory()
            if words.shape not in self._spare and not capturing(target.device):
                self._spare[words.shape] = words.pin_memory()  # another: the copy from that one is under way
        target.copy_(staging, non_blocking=True)
        return staging


def absent(device: torch.device) -> str | None:
    """Return why the device cannot be used if PyTorch finds too few of its type for its index, None if it is there."""
    count: int = getattr(torch, device.type).device_count()
    if (device.index or 0) < count:
        return None
    return f"{device} is not there: PyTorch finds {count} devices of type {device.type}"
