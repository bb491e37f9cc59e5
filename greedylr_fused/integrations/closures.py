"""Checks of closures that frameworks hand to `step()`, made without importing any framework."""

from __future__ import annotations

from typing import Any


def check_whole(closure: Any) -> None:
    """Refuse Lightning's closure under gradient accumulation: it returns the loss of the last micro-batch, divided by
    their number, and the others ran outside of the step.

    Raises:
        RuntimeError: names the number of micro-batches.
    """
    module = next(iter(getattr(closure, "args", ())), None)  # a partial function of the LightningModule
    parts = getattr(getattr(module, "_trainer", None), "accumulate_grad_batches", 1)
    if parts > 1:
        raise RuntimeError(
            f"FusedAdamW.step(): expected the loss of the whole step, got from Lightning that of the last of {parts} "
            f"micro-batches alone, divided by {parts}; pass Trainer(callbacks=[ObserveLoss()]), from "
            "greedylr_fused.integrations.lightning"
        )
