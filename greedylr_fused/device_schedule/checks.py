"""Checks of DeviceSchedule's optimizer: nothing else drives it, and the device can write its learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.step import options

_TENSOR_LR = "lr=torch.tensor(1e-3, device=device) with fused=True, or with capturable=True on a GPU"


def check_optimizer(optimizer: Any, other: object) -> None:
    """Refuse an optimizer that has a scheduler already, or needs none.

    Args:
        optimizer: the argument of DeviceSchedule.
        other: the DeviceSchedule that drives it, if there is one.

    Raises:
        TypeError: no optimizer, or a FusedAdamW.
        RuntimeError: another schedule, or scheduler of torch, drives it.
    """
    if isinstance(optimizer, FusedAdamW):
        raise TypeError(
            "DeviceSchedule: expected an optimizer that does not decide within its own step, got a FusedAdamW; write "
            "FusedAdamW(..., schedule=schedule)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"DeviceSchedule: expected a torch.optim.Optimizer as optimizer, got a {type(optimizer).__name__}; pass "
            "the optimizer first, then the schedule"
        )
    refuse_torch_scheduler(optimizer)
    if other is not None:
        raise RuntimeError(
            f"DeviceSchedule: expected one per optimizer at a time, got one that is driven by {other}; delete that one "
            "first, or pass it another's state with load_state_dict()"
        )


def refuse_torch_scheduler(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose LR a torch scheduler writes.

    Raises:
        RuntimeError: a torch scheduler was made for it.
    """
    if options.has_torch_scheduler(optimizer):
        raise RuntimeError(
            "DeviceSchedule: expected one scheduler, since each overwrites the other, got an optimizer that a "
            "torch.optim.lr_scheduler drives; drop that, and if it is gone, what it left behind: del optimizer.step"
        )


def lr_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the LR tensor of each group, or a copy of one that shares memory. Waits for the device.

    Raises:
        TypeError: an LR is no floating-point tensor of one element.
        ValueError: an LR is negative or not finite, or on another device.
    """
    found: list[Tensor] = []
    for index, group in enumerate(optimizer.param_groups):
        lr = group["lr"]
        where = f"DeviceSchedule: lr of parameter group {index}"
        if not isinstance(lr, Tensor) or not lr.is_floating_point() or lr.numel() != 1:
            raise TypeError(
                f"{where}: expected a floating-point tensor of one element, which the device can write, got {lr!r}; "
                f"construct the optimizer with {_TENSOR_LR}"
            )
        if not 0.0 <= float(lr) < math.inf:
            raise ValueError(
                f"{where}: expected a finite number >= 0, got {lr!r}; write lr=torch.tensor(3e-4, device=device)"
            )
        found.append(lr)
    devices = {lr.device for lr in found}
    homes = {param.device for group in optimizer.param_groups for param in group["params"]}
    if len(devices) > 1 or homes and not devices <= homes:
        raise ValueError(
            "DeviceSchedule: expected LR tensors on one device, that of the parameters "
            f"({', '.join(sorted(map(str, homes)))}), got ones on {', '.join(sorted(map(str, devices)))}; construct "
            f"the optimizer with {_TENSOR_LR}"
        )
    for index, lr in enumerate(found):
        if any(lr.data_ptr() == other.data_ptr() for other in found[:index]):
            found[index] = lr.detach().clone()
    return found


def starting_lr(lr: Tensor) -> float:
    """Return the shortest decimal number that rounds to an LR, so that a bound of 1e-3 encloses `torch.tensor(1e-3)`.
    Waits for the device.
    """
    exact = float(lr)
    rounded = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    return next(number for number in rounded if float(torch.tensor(number, dtype=lr.dtype, device="cpu")) == exact)
