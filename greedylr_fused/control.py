"""The control vector: everything that decides a step, as named float64 slots on the parameters' device.

One vector per optimizer. The host writes configuration into it once; from then on the loss goes in, the learning
rate comes out, and nothing is read back. float64 because the decisions are compared bit for bit with schedulers
written in Python floats: `best - 1e-6` in float32 is rounded away for any loss above 32.

Layout: the scalars of `SLOTS`, then for G parameter groups `lr[G]`, `initial_lr[G]`, `min_lr[G]`, `max_lr[G]`, then
the ring of the last W losses. `csrc/core/control.h` holds the same list; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.schedules import GreedyLR

#: (name, start value, meaning). `None` as start value: set from the options of the optimizer at construction.
_TABLE: tuple[tuple[str, float | None, str], ...] = (
    ("kind", None, "0: no loss-driven schedule, 1: GreedyLR"),
    ("mode_max", None, "1 if a larger loss is better"),
    ("factor", None, "raise divides by it, cut multiplies by it"),
    ("patience", None, "observations"),
    ("threshold", None, "margin by which a loss must beat the best"),
    ("threshold_rel", None, "1 if the margin is relative"),
    ("cooldown", None, "observations to wait after a cut"),
    ("warmup", None, "observations to wait after a raise"),
    ("eps", None, "LR changes up to this size are dropped"),
    ("smooth", None, "1 if the mean over the window is compared"),
    ("window_size", None, "observations"),
    ("reset_start", None, "cuts at the floor before a reset"),
    ("max_grad_norm", None, "2-norm limit, +inf: no clipping"),
    ("skip_nonfinite", None, "1 if a non-finite gradient skips the step"),
    ("n_groups", None, "parameter groups"),
    ("step", 0.0, "committed optimizer steps"),
    ("skipped", 0.0, "steps skipped for non-finite gradients"),
    ("loss_sum", 0.0, "pending: sum of weight * loss"),
    ("loss_weight", 0.0, "pending: sum of weights, 0 if no loss was observed"),
    ("grad_sq_sum", math.nan, "sum of squared raw gradients, NaN if not measured"),
    ("grad_nonfinite", 0.0, "non-zero if a gradient element is not finite"),
    ("found_inf", 0.0, "non-zero if AMP found a non-finite gradient"),
    ("loss", math.nan, "last mean loss"),
    ("smoothed", math.nan, "last value compared with best"),
    ("best", None, "best value compared so far"),
    ("good", 0.0, "better observations in a row"),
    ("bad", 0.0, "other observations in a row"),
    ("cooldown_left", 0.0, "observations"),
    ("warmup_left", 0.0, "observations"),
    ("resets_left", None, "cuts at the floor until a reset"),
    ("window_sum", 0.0, "running sum of the window"),
    ("window_count", 0.0, "losses in the window"),
    ("window_head", 0.0, "ring position written next"),
    ("grad_scale", 1.0, "loss scale of AMP"),
    ("grad_norm", math.nan, "2-norm of the unscaled gradients, NaN if not measured"),
    ("grad_multiplier", 1.0, "clip coefficient / loss scale"),
    ("skip", 0.0, "1 if this step is skipped"),
)

SLOTS: tuple[str, ...] = tuple(name for name, _, _ in _TABLE)
SLOT: dict[str, int] = {name: index for index, name in enumerate(SLOTS)}
#: First slot and end of what a snapshot shows: the state scalars; the LRs of all groups follow them directly.
STATE_BEGIN = SLOT["step"]
GROUPS_BEGIN = len(SLOTS)

#: What a checkpoint keeps of the scalars: decisions and counters, not the values that live within one step.
SAVED = (
    *(
        "kind",
        "mode_max",
        "step",
        "skipped",
        "loss",
        "smoothed",
        "best",
        "good",
        "bad",
        "cooldown_left",
        "warmup_left",
        "resets_left",
    ),
    *("window_sum", "grad_norm"),
)


#: Values for the slots that only a schedule reads.
_NO_SCHEDULE = GreedyLR()


class Control:
    """The vector with views by name.

    Args:
        schedule: loss-driven schedule or None.
        lrs: starting learning rate of each group, length G.
        max_grad_norm: 2-norm limit of all gradients together, or None.
        skip_nonfinite: whether a non-finite gradient skips the step.
        device: where the vector lives.

    Attributes:
        vector: float64 [37 + 4 G + W], W = window_size with `smooth`, otherwise 0.
        lr: [G] view of it, the learning rate of each group.
        pending: [2] view of it, loss_sum and loss_weight.
        shared: [5] view of it, added up over ranks: loss_sum to found_inf; `shared_gradients`: [3], without the loss.
        reads_gradients: whether each step reads all gradients before the update.
        bounds: `(min_lr, max_lr)` of each group, on the host.
    """

    def __init__(
        self,
        schedule: GreedyLR | None,
        lrs: Sequence[float],
        *,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        device: torch.device,
    ) -> None:
        if schedule is not None:
            schedule.check_groups(len(lrs))
        self.schedule = schedule
        self._options: dict[str, Any] = dict(max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite)
        self.reads_gradients = max_grad_norm is not None or skip_nonfinite
        self.n_groups = len(lrs)
        self._scaled = False
        values = {name: start for name, start, _ in _TABLE if start is not None}
        values |= (schedule or _NO_SCHEDULE).slots() | {
            "kind": 0.0 if schedule is None else 1.0,
            "max_grad_norm": math.inf if max_grad_norm is None else float(max_grad_norm),
            "skip_nonfinite": float(skip_nonfinite),
            "n_groups": float(self.n_groups),
        }
        self.bounds = self._bounds(lrs)
        self.window_size = schedule.window_size if schedule is not None and schedule.smooth else 0
        numbers = [values[name] for name in SLOTS]
        numbers += [*lrs, *lrs, *(low for low, _ in self.bounds), *(high for _, high in self.bounds)]
        numbers += [0.0] * self.window_size
        self.vector = torch.tensor(numbers, dtype=torch.float64, device="cpu").to(device)

    def _bounds(self, initial_lrs: Sequence[float]) -> list[tuple[float, float]]:
        if self.schedule is None:
            return [(0.0, math.inf)] * len(initial_lrs)
        if not any(initial_lrs):
            raise ValueError(
                "GreedyLR: got a starting lr of 0 in every parameter group, allowed is at least one above 0, since a "
                "raise divides and a cut multiplies; write lr=3e-4 (into its param_groups, if a checkpoint ended at 0)"
            )
        return [self.schedule.bounds(lr, group) for group, lr in enumerate(initial_lrs)]

    @property
    def device(self) -> torch.device:
        return self.vector.device

    def slot(self, name: str) -> Tensor:
        """0-d view of one scalar."""
        return self.vector[SLOT[name]]

    @property
    def vector(self) -> Tensor:
        return self._vector

    @vector.setter
    def vector(self, vector: Tensor) -> None:
        self._vector = vector
        self.lr = vector[GROUPS_BEGIN : GROUPS_BEGIN + self.n_groups]
        self.pending = vector[SLOT["loss_sum"] : SLOT["loss_weight"] + 1]
        self._pending = self.pending.unbind()
        self.shared = vector[SLOT["loss_sum"] : SLOT["found_inf"] + 1]
        self.shared_gradients = self.shared[2:]

    def observe(self, loss: Any, weight: Any) -> None:
        """Add `weight * loss` to what is pending; each is a number or a tensor of one element. A DTensor is added up
        over its mesh, all ranks of which must call this.
        """
        total, weights = self._pending
        scalar = type(loss) is Tensor and loss.dim() == 0 and loss.device == total.device
        if (
            scalar and loss.element_size() > 1 and not isinstance(weight, Tensor) and weight != 0
        ):  # one launch converts (not from float8), multiplies, adds
            total.add_(loss, alpha=weight)
            weights.add_(weight)
            return
        loss, weight = (_on(total, value) if isinstance(value, Tensor) else value for value in (loss, weight))
        if isinstance(weight, Tensor):  # a mean over no tokens is NaN, and weighs nothing
            total.add_(torch.where(weight == 0, 0.0, loss * weight))
        elif weight != 0:
            total.add_(loss * weight)
        weights.add_(weight)

    def set_amp(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Take over what GradScaler says of this step. True if `decide` is due for it."""
        before, self._scaled = self._scaled, grad_scale is not None or found_inf is not None
        if before or self._scaled:
            for name, value, none in (("grad_scale", grad_scale, 1.0), ("found_inf", found_inf, 0.0)):
                slot = self.slot(name)
                slot.fill_(none) if value is None else slot.copy_(value.reshape(()), non_blocking=True)
        return before or self._scaled

    def to(self, device: torch.device) -> None:
        self.vector = self.vector.to(device)

    def anew(self, lrs: Sequence[float]) -> Control:
        """One with the same options for these starting LRs, on the same device."""
        return Control(self.schedule, lrs, **self._options, device=self.device)

    def grown(self, lr: float) -> Control:
        """One with another group starting at `lr`, otherwise in the state of this one. Waits for the device."""
        numbers = self.numbers()
        numbers.append(numbers[0] | {"lr": lr, "initial_lr": lr})
        control = self.anew([own["initial_lr"] for own in numbers])
        control.load(numbers)
        control.pending.copy_(self.pending)
        return control

    def take(self, other: Control, steps: Iterable[Tensor]) -> None:
        """Become what the other is, in the same memory, which captured graphs read.

        A checkpoint without control numbers has counted its steps all the same: in those of its parameters.
        """
        self.vector.copy_(other.vector)
        self.bounds = other.bounds
        counts = list(steps)
        if counts:
            self.slot("step").copy_(torch.maximum(torch.stack(counts).max(), self.slot("step")))

    def numbers(self) -> list[dict[str, Any]]:
        """Plain numbers of every group, for a checkpoint (waits for the device).

        One dictionary per group: the scalars named in `SAVED` and `window` (oldest loss first), the same in each, and
        the group's own `lr` and `initial_lr`.
        """
        values = self.vector.tolist()
        shared: dict[str, Any] = {name: values[SLOT[name]] for name in SAVED}
        head, count = int(values[SLOT["window_head"]]), int(values[SLOT["window_count"]])
        ring = values[GROUPS_BEGIN + 4 * self.n_groups :]
        shared["window"] = [ring[(head - count + i) % self.window_size] for i in range(count)]
        lrs = values[GROUPS_BEGIN : GROUPS_BEGIN + 2 * self.n_groups]
        return [
            shared | {"lr": lrs[g], "initial_lr": lrs[self.n_groups + g], "window": list(shared["window"])}
            for g in range(self.n_groups)
        ]

    def load(self, groups: Sequence[dict[str, Any]]) -> None:
        """Write the numbers of `numbers()` back, into the same memory.

        Raises:
            ValueError: an LR outside the bounds, and nothing has been changed.
        """
        bounds = self._bounds([saved["initial_lr"] for saved in groups])
        for g, (saved, (low, high)) in enumerate(zip(groups, bounds, strict=True)):
            if not low <= saved["lr"] <= high:
                raise ValueError(
                    f"checkpoint: learning rate of parameter group {g} is {saved['lr']}, allowed is {low} to {high} "
                    "(min_lr to max_lr of this schedule); construct GreedyLR with bounds that enclose it"
                )
        window = groups[0]["window"]
        values = self.vector.tolist()
        values[STATE_BEGIN:GROUPS_BEGIN] = [
            groups[0].get(name, start) if start is not None or name in SAVED else 0.0
            for name, start, _ in _TABLE[STATE_BEGIN:]
        ]
        values[SLOT["window_count"]] = float(len(window))
        values[SLOT["window_head"]] = float(len(window) % self.window_size if self.window_size else 0)
        for g, saved in enumerate(groups):
            values[GROUPS_BEGIN + g] = saved["lr"]
            values[GROUPS_BEGIN + self.n_groups + g] = saved["initial_lr"]
        for k in range(2):
            begin = GROUPS_BEGIN + (2 + k) * self.n_groups
            values[begin : begin + self.n_groups] = [bound[k] for bound in bounds]
        ring = GROUPS_BEGIN + 4 * self.n_groups
        values[ring : ring + len(window)] = window
        self.vector.copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))
        self.bounds = bounds


def _on(target: Tensor, value: Tensor) -> Tensor:
    """A one-element tensor as 0-d float64 on the target's device. Only a copy from a device to the host is waited for:
    the host would read it before it arrives.
    """
    if hasattr(value, "device_mesh"):
        value = value.full_tensor()  # type: ignore[attr-defined]
    return value.detach().reshape(()).to(target.device, torch.float64, non_blocking=target.device.type != "cpu")
