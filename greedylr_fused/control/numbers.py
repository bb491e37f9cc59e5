"""The control vector as plain numbers, for checkpoints and pickles, and back into the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from greedylr_fused.control.slots import SAVED, SAVED_BLOCKS, SLOT, SLOTS, STATE_BEGIN, TABLE, block, ring_begin

if TYPE_CHECKING:
    from greedylr_fused.control.vector import Control


def numbers(self: Control) -> list[dict[str, Any]]:
    """Plain numbers of every group (waits for the device).

    One dictionary per group: the scalars named in `SAVED` and `window` (oldest loss first), the same in each, and the
    group's own `lr`, `initial_lr` and `level`.
    """
    values = self.vector.tolist()
    shared: dict[str, Any] = {name: values[SLOT[name]] for name in SAVED}
    head, count = int(values[SLOT["window_head"]]), int(values[SLOT["window_count"]])
    ring = values[ring_begin(self.n_groups) :]
    window = [ring[(head - count + i) % self.window_size] for i in range(count)]
    own = {name: values[block(name, self.n_groups)] for name in SAVED_BLOCKS}
    return [
        shared | {"window": list(window)} | {name: own[name][group] for name in SAVED_BLOCKS}
        for group in range(self.n_groups)
    ]


def load(self: Control, groups: Sequence[dict[str, Any]]) -> None:
    """Write the numbers of `numbers()` back. With a schedule the LR is what level and step give; the shares of a late
    decay are not written to the device, see `Control.restore_decay`.

    Raises:
        ValueError: a level outside the bounds, and nothing has been changed.
    """
    bounds = self.bounds_for([saved["initial_lr"] for saved in groups])
    for group, (saved, (low, high)) in enumerate(zip(groups, bounds, strict=True)):
        if not low <= saved["level"] <= high:
            raise ValueError(
                f"checkpoint: learning rate of parameter group {group} is {saved['level']}, allowed is {low} to {high} "
                f"(min_lr to max_lr of this schedule); construct {type(self.schedule).__name__} with bounds that "
                "enclose it"
            )
    first, fraction = groups[0], 1.0
    values = self.vector.tolist()
    values[STATE_BEGIN : len(SLOTS)] = [
        first.get(name, start) if start is not None or name in SAVED else 0.0 for name, start, _ in TABLE[STATE_BEGIN:]
    ]
    if self.schedule is not None:
        fraction = self.curve.fraction(first["step"], first["decay_start"], first["decay_steps"])
    at_zero = fraction == first["fraction"] == 0  # where the LR is 0, or what the host wrote for that step alone
    blocks = {
        "lr": [saved["lr"] if self.schedule is None or at_zero else saved["level"] * fraction for saved in groups],
        "initial_lr": [saved["initial_lr"] for saved in groups],
        "min_lr": [low for low, _ in bounds],
        "max_lr": [high for _, high in bounds],
        "level": [saved["level"] for saved in groups],
    }
    for name, numbers in blocks.items():
        values[block(name, self.n_groups)] = numbers
    window = first["window"]
    values[SLOT["fraction"]] = fraction
    values[SLOT["window_count"]] = float(len(window))
    values[SLOT["window_head"]] = float(len(window) % self.window_size if self.window_size else 0)
    ring = ring_begin(self.n_groups)
    values[ring : ring + len(window)] = window
    self.vector.copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))
    self.bounds = bounds
    self.decay_steps = int(first["decay_steps"])
