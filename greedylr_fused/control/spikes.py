"""The rings of spikes in a control vector as plain numbers, for checkpoints and pickles, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.control.slots import SLOT

#: By ring, in their order, before a tuner's values: its name in a checkpoint, and the slots of its length and its head.
RINGS = (("losses", "spike_losses", "losses_head"), ("norms", "spike_norms", "norms_head"))
_COUNTS = tuple(slot for _, *slots in RINGS for slot in slots)


def named(vector: Tensor, size: int) -> dict[str, Any]:
    """Return `skipped` and `spikes`, the steps skipped for any reason and for a spike, and the values of both rings,
    `losses` and `norms`, oldest first; nothing if the rings have size 0.
    """
    if size == 0:
        return {}
    values = vector.tolist()
    found: dict[str, Any] = {name: values[SLOT[name]] for name in ("skipped", "spikes")}
    for index, (name, count_slot, head_slot) in enumerate(RINGS):
        ring = values[_begin(values, size, index) :][:size]
        count, head = int(values[SLOT[count_slot]]), int(values[SLOT[head_slot]])
        found[name] = [ring[(head - count + age) % size] for age in range(count)]
    return found


def place(vector: Tensor, size: int, saved: dict[str, Any]) -> None:
    """Write what `named` returned into a vector: of longer rings the newest values; nothing if either has no rings."""
    if size == 0 or not saved:
        return
    values = vector.tolist()
    for name in ("skipped", "spikes"):  # of a file from before there were rings, the schedule's numbers tell the first
        values[SLOT[name]] = max(values[SLOT[name]], saved[name])
    for index, (name, count_slot, head_slot) in enumerate(RINGS):
        kept = saved[name][-size:]
        begin = _begin(values, size, index)
        values[begin : begin + len(kept)] = kept
        values[SLOT[count_slot]], values[SLOT[head_slot]] = float(len(kept)), float(len(kept) % size)
    vector.copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))


def carry(source: Tensor, target: Tensor, size: int, behind: int) -> None:
    """Copy rings of that size, with so many values behind them, and what was skipped for spikes, to the vector of other
    groups, without waiting.
    """
    new, old = (vector[: vector.numel() - behind][-2 * size :] for vector in (target, source))
    if size:
        new.copy_(old)
    for name in ("spikes", *_COUNTS):
        target[SLOT[name]].copy_(source[SLOT[name]])


def _begin(values: Sequence[float], size: int, index: int) -> int:
    end = int(values[SLOT["tuner_begin"]]) or len(values)
    return end - (2 - index) * size
