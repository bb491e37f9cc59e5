"""Checks of DeviceSchedule's optimizers: nothing else drives them, and the device can write their learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import KEY, read_control
from greedylr_fused.device_schedule.muon import Muon
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import LevelSearch
from greedylr_fused.step import options
from greedylr_fused.warning import warn

#: Key of a checkpoint for the states of several optimizers.
STATES = "optimizers"
_TENSOR_LR = "lr=torch.tensor(1e-3, device=device) with fused=True, or with capturable=True on a GPU"


def check_optimizer(optimizer: Any, other: object, *, several: bool) -> None:
    """Refuse an optimizer that has a scheduler already, or needs none.

    Args:
        optimizer: the argument of DeviceSchedule, or one of those in it.
        other: the DeviceSchedule that drives it, if there is one.
        several: whether it is given in a sequence, in which a FusedAdamW may be.

    Raises:
        TypeError: no optimizer, or a FusedAdamW that is to decide by itself.
        RuntimeError: another schedule, or scheduler of torch, drives it.
    """
    if isinstance(optimizer, FusedAdamW) and not several:
        raise TypeError(
            "DeviceSchedule: expected an optimizer that does not decide within its own step, got a FusedAdamW; write "
            "FusedAdamW(..., schedule=schedule)"
        )
    if isinstance(optimizer, FusedAdamW) and optimizer.schedule is not None:
        raise TypeError(
            "DeviceSchedule: expected one schedule for all optimizers, got a FusedAdamW that has its own "
            f"{type(optimizer.schedule).__name__}; construct it with schedule=None and lr=torch.tensor(...)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"DeviceSchedule: expected a torch.optim.Optimizer as optimizer, got a {type(optimizer).__name__}; pass "
            "the optimizer first, or a list of optimizers, then the schedule"
        )
    refuse_torch_scheduler(optimizer)
    if other is not None:
        raise RuntimeError(
            f"DeviceSchedule: expected one per optimizer at a time, got one that is driven by {other}; delete that one "
            "first, or pass it another's state with load_state_dict()"
        )


def check_no_search(schedule: Any) -> None:
    """Refuse a schedule that puts parameters back, which DeviceSchedule does not own.

    Raises:
        TypeError: names the optimizer that does.
    """
    if isinstance(schedule, LevelSearch):
        raise TypeError(
            "DeviceSchedule: expected a schedule that leaves parameters alone, got "
            f"{type(schedule).__name__}, which puts them back after a trial; write FusedAdamW(..., schedule=schedule), "
            "under fully_shard if it is to be sharded"
        )


def check_together(optimizers: Sequence[Optimizer]) -> None:
    """Refuse no optimizers, and a parameter that several would step.

    Raises:
        ValueError: names its shape.
    """
    if not optimizers:
        raise ValueError("DeviceSchedule: expected at least one optimizer, got an empty sequence; pass [muon, adamw]")
    seen = set[Tensor]()
    for optimizer in optimizers:
        own = {param for group in optimizer.param_groups for param in group["params"]}
        if twice := own & seen:
            raise ValueError(
                "DeviceSchedule: expected each parameter in one optimizer, got one of shape "
                f"{tuple(twice.pop().shape)} in two, which would both step it; give the second the other parameters"
            )
        seen |= own


def check_spikes(optimizers: Sequence[Optimizer], schedule: Any) -> None:
    """Refuse a FusedAdamW that skips spikes under a schedule that it does not know to maximise the loss: by the mode of
    its own it would take the bad side for the good one.

    Raises:
        ValueError: there is one.
    """
    skips = any(isinstance(optimizer, FusedAdamW) and optimizer.skip_spikes is not None for optimizer in optimizers)
    if skips and getattr(schedule, "mode", "min") == "max":
        raise ValueError(
            'DeviceSchedule: expected mode="min" over a FusedAdamW with skip_spikes, for which a larger loss is worse, '
            f'got {type(schedule).__name__}(mode="max"); give both the negative loss, with mode="min"'
        )


def check_ratios(ratios: Any, count: int) -> Sequence[float]:
    """Return the ratios of the LRs of so many optimizers.

    Raises:
        ValueError: not one number > 0 for each.
    """
    numbers = isinstance(ratios, Sequence) and all(options.is_number(x) and 0.0 < x < math.inf for x in ratios)
    if not numbers or len(ratios) != count:
        raise ValueError(
            f"DeviceSchedule(ratios=...): expected one finite number > 0 for each of {count} optimizers, got "
            f"{ratios!r}; write the LR of each as a ratio of that of the first, such as [1.0, 0.3]"
        )
    return ratios  # type: ignore[no-any-return]


def check_bounds(bounds: Sequence[tuple[float, float]], lrs: Sequence[float]) -> None:
    """Refuse bounds that would end the ratio of the LRs of several optimizers, where one stops before another.

    Args:
        bounds: lowest and highest level of each group.
        lrs: the starting LR of each group.

    Raises:
        ValueError: names two groups.
    """
    shares = [
        (index, low / lr, high / lr) for index, ((low, high), lr) in enumerate(zip(bounds, lrs, strict=True)) if lr
    ]
    first, *others = shares
    for index, *own in others:
        if not all(math.isclose(x, y, rel_tol=1e-9) for x, y in zip(own, first[1:], strict=True)):
            raise ValueError(
                f"DeviceSchedule: expected bounds in the ratio of the LRs, which is kept, got {first[1]:g} to "
                f"{first[2]:g} times that of group {first[0]} and {own[0]:g} to {own[1]:g} times that of group "
                f"{index}; write min_lr_ratio= and max_lr_ratio="
            )


def warn_of_host_reads(optimizer: Optimizer) -> None:
    """Warn of torch's Muon, which hands the LR of each parameter to an operation as a number."""
    if isinstance(optimizer, torch.optim.Muon) and not isinstance(optimizer, Muon):
        warn(
            "DeviceSchedule: expected an optimizer whose step reads the LR on the device, got torch.optim.Muon, which "
            "waits for it at each step and parameter; write greedylr_fused.Muon(...), with the same arguments"
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


def lr_tensors(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Return the LR tensor of each group of all, or a copy of one that shares memory. Waits for the device.

    Raises:
        TypeError: an LR is no floating-point tensor of one element.
        ValueError: an LR is negative or not finite, or not on the device of its optimizer.
    """
    found: list[Tensor] = []
    for optimizer in optimizers:
        own = [_lr_tensor(group["lr"], len(found) + index) for index, group in enumerate(optimizer.param_groups)]
        devices = {lr.device for lr in own}
        homes = {param.device for group in optimizer.param_groups for param in group["params"]}
        if len(devices) > 1 or homes and not devices <= homes:
            raise ValueError(
                "DeviceSchedule: expected LR tensors on one device, that of the parameters "
                f"({', '.join(sorted(map(str, homes)))}), got ones on {', '.join(sorted(map(str, devices)))}; "
                f"construct the optimizer with {_TENSOR_LR}"
            )
        found += own
    for index, lr in enumerate(found):
        if any(lr.data_ptr() == other.data_ptr() for other in found[:index]):
            found[index] = lr.detach().clone()
    return found


def _lr_tensor(lr: Any, index: int) -> Tensor:
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
    return lr


def starting_lr(lr: Tensor) -> float:
    """Return the shortest decimal number that rounds to an LR, so that a bound of 1e-3 encloses `torch.tensor(1e-3)`.
    Waits for the device.
    """
    exact = float(lr)
    rounded = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    return next(number for number in rounded if float(torch.tensor(number, dtype=lr.dtype, device="cpu")) == exact)


def check_saved(
    state_dict: Any, n_groups: int, n_optimizers: int
) -> tuple[list[dict[str, Any]], Sequence[dict[str, Any]] | None]:
    """Return the numbers of each group in a checkpoint, and the states of the optimizers, None if it has none.

    Args:
        state_dict: what was given to `DeviceSchedule.load_state_dict`.
        n_groups: parameter groups of all optimizers.
        n_optimizers: how many were given in a sequence; 0 for one alone, whose state is not in it.

    Raises:
        TypeError, ValueError: damaged, or of other numbers of groups and optimizers.
    """
    given = state_dict if isinstance(state_dict, Mapping) else {}
    groups, states = given.get(KEY), given.get(STATES)
    if not isinstance(groups, Sequence) or isinstance(groups, str) or len(groups) != n_groups:
        raise ValueError(
            "DeviceSchedule.load_state_dict(): expected what state_dict() returned for an optimizer with "
            f'{n_groups} parameter groups, got no "{KEY}" of as many; load that of such an optimizer'
        )
    if states is not None and (not isinstance(states, Sequence) or len(states) != n_optimizers):
        raise ValueError(
            f'DeviceSchedule.load_state_dict(): expected the states of {n_optimizers} optimizers under "{STATES}", got '
            f"{len(states) if isinstance(states, Sequence) else type(states).__name__}; construct it with the "
            "optimizers that it was saved with, in their order"
        )
    numbers = read_control([{KEY: group} for group in groups])
    if numbers is None:
        raise ValueError(
            f'DeviceSchedule.load_state_dict(): expected a filled "{KEY}", got an empty one; take an earlier checkpoint'
        )
    return numbers, states
