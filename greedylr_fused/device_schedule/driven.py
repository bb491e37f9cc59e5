"""The optimizers that one schedule drives: their groups in one order, an LR tensor for each, and what they save.

loss -> control vector, a slot per group of all optimizers       on the device of the first one's LRs
     -> one copy per group, into its LR tensor                   on that optimizer's device, in the tensor's dtype
     -> the next step of each optimizer, which reads its tensor  FusedAdamW: by a copy into a slot of its own
checkpoint: the state_dict() of each optimizer, and the numbers of the vector
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.device_schedule import checks


class Driven:
    """Optimizers and their LR tensors. Construction waits for the device.

    Args:
        optimizers: at least one; group g of all is the g-th, counted from the first one's first.

    Attributes:
        optimizers: the same.
        lrs: the LR tensor of each group, the same object for good; where several shared one, all but one have copies.

    Raises:
        TypeError, ValueError: see `checks.lr_tensors`.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self.lrs = checks.lr_tensors(self.optimizers)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, as they are now."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all optimizers, as they are now."""
        return [param for group in self.groups for param in group["params"]]

    def starting_lrs(self, ratios: Sequence[float] | None) -> list[float]:
        """Return the starting LR of each group; with ratios those of other optimizers follow from the first one's."""
        lrs = [checks.starting_lr(lr) for lr in self.lrs]
        if ratios is None:
            return lrs
        found, base = list[float](), lrs[0]
        for optimizer, ratio in zip(self.optimizers, checks.check_ratios(ratios, len(self.optimizers)), strict=True):
            own = lrs[len(found) : len(found) + len(optimizer.param_groups)]
            if own[0] == 0.0:
                raise ValueError(
                    f"DeviceSchedule(ratios=...): expected an LR above 0 in the first group of {name(optimizer)}, got "
                    "0, of which nothing is a multiple; write another there"
                )
            found += [base * (ratio / ratios[0]) * (lr / own[0]) for lr in own]
        return found

    @torch.no_grad()
    def write(self, decided: list[Tensor]) -> None:
        """Copy what was decided, one number per group in the shape of its tensor, into the tensors; waits for nothing,
        but where the tensor is the host's and the number a GPU's.
        """
        torch._foreach_copy_(self.lrs, decided)

    def put_back(self) -> None:
        """Put the tensors into the groups, where an optimizer's loader has put others."""
        for group, lr in zip(self.groups, self.lrs, strict=True):
            group["lr"] = lr

    def check(self) -> None:
        """Refuse groups or LRs that something else has changed, and put back the tensors that hold the same.

        Raises:
            RuntimeError: names the group.
        """
        for optimizer in self.optimizers:
            checks.refuse_torch_scheduler(optimizer)
        self.check_number_of_groups()
        for index, (group, tensor) in enumerate(zip(self.groups, self.lrs, strict=True)):
            if (found := group["lr"]) is tensor:
                continue
            if float(found) != float(tensor):
                raise RuntimeError(
                    f"DeviceSchedule: expected lr={float(tensor)} in parameter group {index}, as the schedule decided, "
                    f"got lr={float(found)} written there; after optimizer.load_state_dict() load the schedule's state "
                    "too, and to change the LR by hand construct another schedule"
                )
            group["lr"] = tensor  # the optimizer's loader has put a copy there

    def check_number_of_groups(self) -> None:
        """Refuse groups that were added or removed.

        Raises:
            RuntimeError: names both numbers.
        """
        if (found := len(self.groups)) != len(self.lrs):
            raise RuntimeError(
                f"DeviceSchedule: expected an optimizer with the {len(self.lrs)} parameter groups that it had, got "
                f"one with {found}; add groups first, and construct the schedule then"
            )

    def state_dicts(self) -> list[dict[str, Any]]:
        """Return the state of each optimizer, with its own tensors, as torch's `state_dict` does."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Load the state of each optimizer, or, if one fails, none."""
        before, loaded = self.state_dicts(), list[tuple[Optimizer, dict[str, Any]]]()
        try:
            for optimizer, own, state in zip(self.optimizers, before, states, strict=True):
                loaded.append((optimizer, own))
                optimizer.load_state_dict(state)
        except BaseException:
            for optimizer, own in loaded:
                optimizer.load_state_dict(own)
            raise


def name(optimizer: Optimizer) -> str:
    """Return what an optimizer is called in messages."""
    return type(optimizer).__name__
