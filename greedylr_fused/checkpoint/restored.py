"""What an optimizer does when its groups, states, control or memory were replaced: by Python between steps, by a load,
by a copy or by unpickling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.backends import Backend
from greedylr_fused.checkpoint import pickling
from greedylr_fused.checkpoint.resume import mark
from greedylr_fused.checkpoint.state_dict import drop_stale
from greedylr_fused.control import Control, Schedule
from greedylr_fused.step import Engine, Listener, Rates, options

#: Constructor options that a pickle keeps, beside what `pickling.get_state` returns.
_OPTIONS = ("_schedule", "_max_grad_norm", "_skip_nonfinite")


class Restored(Optimizer):
    """The parts of an optimizer, made anew from what there is.

    Attributes:
        _engine, _control, _rates: which backend runs, the device's state, and the host's view of that.
        _listeners: what is told of steps, replays and restarts.
    """

    _schedule: Schedule | None
    _max_grad_norm: float | None
    _skip_nonfinite: bool
    _engine: Engine
    _control: Control
    _rates: Rates
    _listeners: list[Listener]

    def __getstate__(self) -> dict[str, Any]:
        self._take_written()
        own = {name: vars(self)[name] for name in _OPTIONS}
        return pickling.get_state(self, self._control, self._engine) | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        made = pickling.set_state(self, state)
        if made is not None:
            self._listeners = []  # the original keeps its own
            self._engine = pickling.engine(made, self._device(), needs_loss=options.needs_loss(self._schedule))
            self._control = self._new_control(pickling.starting_lrs(made))
            pickling.fill(self._control, made)
            self._rates = self._new_rates(self._control)

    def _new_control(self, lrs: Sequence[float]) -> Control:
        return Control(
            self._schedule,
            lrs,
            max_grad_norm=self._max_grad_norm,
            skip_nonfinite=self._skip_nonfinite,
            device=self._device(),
        )

    def _new_rates(self, control: Control) -> Rates:
        """Return a new view of the control for the host."""
        mark(self.param_groups, None if self._schedule is None else control.initial_lrs)
        return Rates(control, self.param_groups, has_schedule=self._schedule is not None)

    def _device(self) -> torch.device:
        """Return the parameters' device now: torch lets a model move, or get its memory, after construction."""
        device = next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        return torch.device("cpu") if device.type == "meta" else device

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _rebuilt(self) -> Backend:
        """Return the backend over a new table: parameters, states or dtypes of gradients have changed."""
        drop_stale(self.param_groups, with_control=self._schedule is not None)
        if self._device() != self._control.device:
            self._control.to(self._device())
            self._restart()
        return self._engine.rebuilt(self.param_groups, self.state, self._control)

    def _restart(self, control: Control | None = None) -> None:
        """Drop the table and renew the mirror, after groups, states or the control (or its memory) were replaced."""
        control = control or self._control
        self._engine.discard()
        self._rates, self._control = self._new_rates(control), control
        for listener in self._listeners:
            listener.after_restart()

    def _follow_groups(self) -> None:
        """Follow groups that were added, assigned, removed or put in another order since the last call."""
        known = self._rates.groups
        if not known.are(self.param_groups):
            self._rates.push(known.then, tensors=not self._engine.lent)  # what was written before counts
            control, written = known.regrouped(self.param_groups, self._control, self._engine.state_dtype, self.state)
            self._restart(control)
            for index, lr in written.items():
                self.param_groups[index]["lr"] = lr

    def _take_written(self) -> None:
        """Take over the learning rates that the host wrote to the groups."""
        self._follow_groups()
        self._rates.push(self.param_groups, tensors=not self._engine.lent)

    def _numbers(self) -> list[dict[str, Any]]:
        self._take_written()
        return self._control.numbers()
