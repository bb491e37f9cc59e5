"""What every backend offers: four calls over one table, none of which reads a value back to the host."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from greedylr_fused.packing import Table


class Backend(Protocol):
    """Runs the steps of one table.

    Order in a step: `measure` and `decide` with clipping or skip_nonfinite; `decide` alone under AMP without them;
    then `update`, then `commit`.
    """

    name: ClassVar[str]
    """As in `FusedAdamW(backend=...)`."""
    chunk_size: ClassVar[int]
    """Elements per work item; the table is built with it."""

    def __init__(self, table: Table) -> None: ...

    def measure(self) -> None:
        """One read of all gradients: `grad_sq_sum` (accumulated in float64, fixed order) and `grad_nonfinite`."""

    def decide(self) -> None:
        """G1..G4: norm, clip coefficient, multiplier, skip flag."""

    def update(self) -> None:
        """A1..A6 for every tensor that has a gradient; nothing if `skip` is set."""

    def commit(self) -> None:
        """Advance the step counts, then C1..C9: the loss decides the next learning rate."""

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why it cannot run on that device, or None if it can."""
