"""The loss that a step is about to decide from: what was observed since the step before, added up on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def add(total: Tensor, weights: Tensor, loss: Any, weight: Any) -> None:
    """Add `weight * loss` and `weight`, each a number or a tensor of one element; a DTensor is added up over its mesh,
    all ranks of which must call this.

    Args:
        total: float64 0-d, the sum of weighted losses.
        weights: float64 0-d, the sum of weights.
        loss: as in `FusedAdamW.observe`.
        weight: as in `FusedAdamW.observe`.
    """
    loss, weight = (_on(total, value) if isinstance(value, Tensor) else value for value in (loss, weight))
    if isinstance(weight, Tensor):  # a mean over no tokens is NaN, and weighs nothing
        total.add_(torch.where(weight == 0, 0.0, loss * weight))
    elif weight != 0:
        total.add_(loss * weight)
    weights.add_(weight)


def _on(target: Tensor, value: Tensor) -> Tensor:
    """Return a one-element tensor as 0-d float64 on the target's device. Only a copy from a device to the host is
    waited for: otherwise the host would read it before it arrives.
    """
    if hasattr(value, "device_mesh"):
        value = value.full_tensor()  # type: ignore[attr-defined]
    return value.detach().reshape(()).to(target.device, torch.float64, non_blocking=target.device.type != "cpu")
