"""The control vector: everything that decides a step, as named float64 slots on the parameters' device.

One vector per optimizer. The host writes configuration into it once; from then on the loss goes in, the learning
rate comes out, and nothing is read back. float64 because the decisions are compared bit for bit with schedulers
written in Python floats: `best - 1e-6` in float32 is rounded away for any loss above 32.

Layout: the scalars of `SLOTS`, then the `BLOCKS`, each with a value per parameter group, then the ring of the last
losses, the two rings of spikes, and the tuner's values. The loss moves the level, within the bounds; the LR is the
level times the curve value, which the step schedule's curve has for the step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.capture import capturing, outside_inference
from greedylr_fused.control import numbers, pending, spikes, written
from greedylr_fused.control.bounds import Schedule, bounds_of, bounds_of_saved
from greedylr_fused.control.curve import Curve
from greedylr_fused.control.slots import BLOCKS, SLOT, SLOTS, TABLE, block, shown
from greedylr_fused.control.snapshot import Snapshot, mapped
from greedylr_fused.control.tuned import Tuned
from greedylr_fused.schedules import GreedyLR, LevelSearch, LossSchedule, Mechanic, SkipSpikes

#: Values for the slots that only a loss-driven schedule reads.
_NO_SCHEDULE = GreedyLR(smooth=False).slots() | {"kind": 0.0}


class Control:
    """The control vector of one optimizer, with views by name.

    Args:
        schedule: what decides the LR, or None.
        lrs: starting learning rate of each group, length G; with a step schedule its peak.
        max_grad_norm: 2-norm limit of all gradients together, or None.
        skip_nonfinite: whether a non-finite gradient skips the step.
        device: where the vector lives.
        curve: the curve of that schedule, if there is one already.
        skip_spikes: which steps are skipped as spikes; None for none.
        tuner: what scales the sum of all updates, or None.

    Attributes:
        vector: float64 [slots + 5 G + W + 2 N + T], G groups, W = window_size with `smooth`, otherwise 0, N =
            spike_window, 0 without `skip_spikes`, T of `tuned`, the tuner's part.
        lr: [G] view of it, the learning rate of each group; `level`: [G], the same before the step schedule's factor.
        pending: [2] view of it, loss_sum and loss_weight.
        shared: [6] view of it, with a tuner [9], added up over ranks: loss_sum to found_inf, or to param_moved_sum;
            `shared_gradients`: the same without the loss.
        curve: the step schedule's table.
        measures_l1: whether each step measures the norms of the gradients, the 1-norm too; anybody may set it.
        is_loss_driven: whether the loss decides the LR.
        bounds: (lowest, highest) level of each group, on the host; `initial_lrs`: the LR that each started from.
        decay_steps: length of the late decay, 0 until it begins.
        observed: how many losses are pending, counted on the host; `writes`: learning rates written under a schedule.
    """

    @outside_inference
    def __init__(
        self,
        schedule: Schedule | None,
        lrs: Sequence[float],
        *,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        device: torch.device,
        curve: Curve | None = None,
        skip_spikes: SkipSpikes | None = None,
        tuner: Mechanic | None = None,
    ) -> None:
        loss_driven = schedule if isinstance(schedule, LossSchedule) else None
        if loss_driven is not None:
            loss_driven.check_groups(len(lrs))
        self.schedule, self.is_loss_driven = schedule, loss_driven is not None
        self.spike_window = 0 if skip_spikes is None else skip_spikes.rolling_interval_length
        given = dict(max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite, skip_spikes=skip_spikes, tuner=tuner)
        self._options: dict[str, Any] = given
        self.measures_l1 = self._scaled = False
        self.n_groups = len(lrs)
        self.decay_steps = self.observed = self.writes = 0
        self.bounds, self.initial_lrs = bounds_of(schedule, lrs), list(lrs)
        self.curve = Curve(schedule, device) if curve is None else curve
        curve_value = self.curve.value_at(0, math.inf, 0)
        values = {name: start for name, start, _ in TABLE if start is not None} | _NO_SCHEDULE
        values |= {} if loss_driven is None else loss_driven.slots(self.curve.warmup)
        values |= {} if skip_spikes is None else skip_spikes.slots()
        values |= {
            "curve_length": float(self.curve.length),
            "max_grad_norm": math.inf if max_grad_norm is None else float(max_grad_norm),
            "skip_nonfinite": float(skip_nonfinite),
            "n_groups": float(self.n_groups),
            "curve_value": curve_value,
        }
        self.window_size = 0 if loss_driven is None else loss_driven.ring
        lows, highs = (tuple(bound[k] for bound in self.bounds) for k in range(2))
        levels = [lr * values["multiplier"] for lr in lrs]
        scaled = [level * curve_value for level in levels]
        blocks = {"lr": scaled, "initial_lr": lrs, "min_lr": lows, "max_lr": highs, "level": levels}
        rings = (0.0,) * (self.window_size + 2 * self.spike_window)
        behind = [*(value for name in BLOCKS for value in blocks[name]), *rings]
        self.tuned = Tuned(tuner, len(SLOTS) + len(behind))
        values |= self.tuned.slots
        scalars, behind = [values[name] for name in SLOTS], behind + self.tuned.start
        self.vector = torch.tensor(scalars + behind, dtype=torch.float64, device="cpu").to(device)

    @property
    def scaled(self) -> bool:
        """Return whether the last step had a gradient scaler, whose values the slots still hold."""
        return self._scaled

    @property
    def needs_loss(self) -> bool:
        """Return whether the loss decides anything: the LR, or whether a step is skipped."""
        return self.is_loss_driven or self.spike_window > 0

    @property
    def searches(self) -> bool:
        """Return whether the schedule tries levels, and says in `backup` what is to be copied."""
        return isinstance(self.schedule, LevelSearch)

    @property
    def follows_steps(self) -> bool:
        """Return whether there is a step schedule, so that the LR is not the level."""
        return self.curve.base is not None

    @property
    def skips_nonfinite(self) -> bool:
        """Return whether a non-finite gradient skips the step."""
        return bool(self._options["skip_nonfinite"])

    @property
    def reads_gradients(self) -> bool:
        """Return whether each step reads all gradients before the update."""
        decides = self._options["max_grad_norm"] is not None or self.skips_nonfinite or self.spike_window > 0
        return self.measures_l1 or decides or self._options["tuner"] is not None

    def numbers(self) -> list[dict[str, Any]]:
        """Return plain numbers of every group, see `numbers.named`. Waits for the device."""
        return numbers.named(self.vector.tolist(), self.n_groups, self.window_size)

    def load(self, groups: Sequence[dict[str, Any]]) -> None:
        """Write what `numbers()` returned into the vector. With a schedule the LR is what level and step give; the
        curve of a late decay is not written to the device, see `restore_decay`.

        Raises:
            ValueError: a level is outside its bounds; then nothing has been changed.
        """
        bounds = bounds_of_saved(self.schedule, groups)
        first, curve_value = groups[0], 1.0
        if self.schedule is not None:
            curve_value = self.curve.value_at(first["step"], first["decay_start"], first["decay_steps"])
        # Where the curve is 0 the LR is 0, or what the host wrote for that step alone.
        at_zero = curve_value == first["curve_value"] == 0
        keeps = self.schedule is None or at_zero
        blocks = {
            "lr": [saved["lr"] if keeps else saved["level"] * curve_value for saved in groups],
            "initial_lr": [saved["initial_lr"] for saved in groups],
            "min_lr": [low for low, _ in bounds],
            "max_lr": [high for _, high in bounds],
            "level": [saved["level"] for saved in groups],
        }
        values = numbers.placed(groups, self.vector.tolist(), blocks, curve_value, self.window_size)
        self.vector.copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))
        self.tuned.load(self.tuned.learned())
        self.bounds, self.decay_steps, self.writes = bounds, int(first["decay_steps"]), 0
        self.initial_lrs = blocks["initial_lr"]

    @property
    def device(self) -> torch.device:
        return self.vector.device

    def slot(self, name: str) -> Tensor:
        """Return a 0-d view of one scalar."""
        return self.vector[SLOT[name]]

    @property
    def vector(self) -> Tensor:
        return self._vector

    @vector.setter
    def vector(self, vector: Tensor) -> None:
        self._vector = vector
        self.lr, self.level = (vector[block(name, self.n_groups)] for name in ("lr", "level"))
        self.pending = vector[SLOT["loss_sum"] : SLOT["loss_weight"] + 1]
        self._pending = self.pending.unbind()
        self.tuned.vector = vector
        self.shared = vector[SLOT["loss_sum"] : SLOT[self.tuned.last_shared] + 1]
        self.shared_gradients = self.shared[2:]
        self.__dict__.pop("snapshot", None)

    @functools.cached_property
    def snapshot(self) -> Snapshot | None:  # where each step leaves the slots `shown` for the host, if it can
        return mapped(self.vector[shown(self.n_groups)].numel(), self.device)

    def write_lr(self, group: int, lr: float | Tensor) -> None:
        """Set the LR of the next step, without waiting; the schedule goes on from there.

        A number must be within the bounds, a tensor is clamped to them. With a step schedule the level becomes the one
        that gives this LR, within its bounds; where the curve is 0, no level does, and the LR holds for one step alone.
        A search moves the starting LR in proportion and goes on with its window; an LR of 0 holds for one step alone.
        """
        slot, level = self.lr[group], self.level[group]
        if isinstance(lr, Tensor):
            slot.copy_(lr.detach().reshape(()), non_blocking=True)
        else:
            slot.fill_(lr)
        if self.schedule is None:
            return
        if not capturing(self.device):  # who knows whether, and how often, a graph is replayed
            self.writes += 1
            self.slot("writes").fill_(self.writes)
        curve_value = self.slot("curve_value") if self.follows_steps else None
        initial = self.vector[block("initial_lr", self.n_groups)][group]
        search = (initial, *map(self.slot, written.SEARCH)) if self.searches else None
        written.place(slot, level, self.bounds[group], curve_value, search)

    def start_decay(self, steps: int) -> None:
        """Let the late decay begin with the next step, without waiting.

        Raises:
            RuntimeError, ValueError, TypeError: see `FusedAdamW.start_decay`.
        """
        self.curve.check_decay(steps, self.decay_steps)
        self.curve.write_decay(steps)
        self.decay_steps = steps
        self.slot("decay_steps").fill_(steps)
        self.slot("decay_start").copy_(self.slot("step"))

    def observe(self, loss: Any, weight: Any) -> None:
        """Add `weight * loss` to what is pending by tensor operations; each is a number or a tensor of one element."""
        self.observed += 1
        total, weights = self._pending
        pending.add(total, weights, loss, weight)

    def discard_observed(self) -> None:
        """Drop the pending loss, as after a step that failed: the step has used it up, or it would count twice."""
        self.observed = 0
        self.pending.zero_()

    def set_amp(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Take over what GradScaler says of this step. Return whether it, or the step before, makes `clip` due."""
        before, self._scaled = self._scaled, grad_scale is not None or found_inf is not None
        if before or self._scaled:
            for name, value, none in (("grad_scale", grad_scale, 1.0), ("found_inf", found_inf, 0.0)):
                slot = self.slot(name)
                slot.fill_(none) if value is None else slot.copy_(value.reshape(()), non_blocking=True)
        return before or self._scaled

    @outside_inference
    def to(self, device: torch.device) -> None:
        self.vector = self.vector.to(device)
        self.curve.to(device)

    def anew(self, lrs: Sequence[float]) -> Control:
        """Return a control with the same options for these starting LRs, on the same device."""
        made = Control(self.schedule, lrs, **self._options, device=self.device, curve=self.curve)
        made.measures_l1 = self.measures_l1
        return made

    def regrouped(self, sources: Sequence[int | None], lrs: Sequence[float]) -> Control:
        """Return a control in this state for other groups: each is the one here with its index in `sources` or, where
        that is None, a new one that starts from its LR in `lrs`. Waits for the device.
        """
        groups = numbers.regrouped(self.numbers(), sources, lrs)
        control = self.anew([group_numbers["initial_lr"] for group_numbers in groups])
        control.load(groups)
        spikes.carry(self.vector, control.vector, self.spike_window, len(self.tuned.start))
        control.tuned.load(self.tuned.learned())
        control.pending.copy_(self.pending)
        control.observed = self.observed
        if self.vector.is_cuda:  # what was enqueued above still reads it
            self.vector.record_stream(torch.cuda.current_stream(self.device))
        return control

    def become(self, other: Control) -> None:
        """Take over the state of another control, in the memory that captured graphs read."""
        self.vector.copy_(other.vector)
        self.bounds, self.initial_lrs, self.decay_steps = other.bounds, other.initial_lrs, other.decay_steps
        self.writes = other.writes
        self.restore_decay()

    def warn_of_end(self) -> None:
        """Warn if the schedule is over and its LR 0, which training on would never show. Waits for the device."""
        self.curve.warn_of_end(int(self.slot("step")))

    def restore_decay(self) -> None:
        """Write the curve of a late decay that has begun where the device reads it."""
        if self.decay_steps:
            self.curve.write_decay(self.decay_steps)
