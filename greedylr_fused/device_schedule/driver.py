"""DeviceSchedule: the schedules of this package for any optimizers of PyTorch whose learning rates are tensors.

The device decides, as for `FusedAdamW`, in a control vector of its own; what it decided is then copied into the tensor
of each parameter group, which a captured graph or a compiled step goes on reading (driven.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import Optimizer

from greedylr_fused.backends import resolve
from greedylr_fused.capture import keep, outside_inference
from greedylr_fused.checkpoint import KEY, fitted, saved
from greedylr_fused.control import Control, Schedule
from greedylr_fused.device_schedule import checks
from greedylr_fused.device_schedule.driven import Driven, name
from greedylr_fused.ranks import Ranks
from greedylr_fused.step import Listener, Metrics, Mirror, flow, losses, options, outside_graphs
from greedylr_fused.tensors import Copies, TensorTable

#: The DeviceSchedule that drives each optimizer, for as long as both exist.
_DRIVEN: weakref.WeakKeyDictionary[Optimizer, weakref.ref[DeviceSchedule]] = weakref.WeakKeyDictionary()


class DeviceSchedule:
    """A schedule for the learning rates of any optimizer, or of several, decided on the device with no host
    synchronisation.

        opt = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3, device="cuda"), capturable=True)
        schedule = DeviceSchedule(opt, GreedyLR(base=Cosine(total_steps=10_000)))
        loss = model(batch); loss.backward()
        opt.step(); schedule.step(loss=loss)

    The optimizer's step reads the LR tensors. Optimizers that are neither fused nor capturable, and torch's Muon (not
    this package's), read them back to the host, and so wait. Each group's tensor stays the same object in the same
    dtype, and holds what `read_lr()` returns, rounded once. Groups that share a tensor, as after `lr=tensor`, get one
    each: capture graphs after the construction.

    Several optimizers, `DeviceSchedule([muon, adamw], schedule)`, have one loss and one decision: their LRs keep the
    ratios that they start with, to within `eps` of the schedule. A FusedAdamW may be one of them, with `schedule=None`;
    its `max_grad_norm` and `skip_spikes` are those of its own parameters, and its step takes the loss, too; a
    DeviceSchedule itself skips no step. They may be on several devices, each on one: the decision is made on that of
    the first. `schedule.step(loss=loss)` comes after the steps of all.

    The starting LR of a group (the peak of a step schedule) is the shortest decimal number that rounds to what its
    tensor holds: 1e-3 of `torch.tensor(1e-3)`, not 0.0010000000474974513. Construction waits for the device; steps
    count calls of `step()`, whether or not GradScaler, or FusedAdamW, skipped that of the optimizer.

    Args:
        optimizer: any `torch.optim.Optimizer` but FusedAdamW, which has `schedule=`, or a sequence of optimizers, of
            which each parameter is in one; the LRs of its groups are floating-point tensors of one element, those of an
            optimizer on one device on which its parameters are.
        schedule: loss-driven (`GreedyLR`, `ReduceOnPlateau`) or a step schedule (`Cosine`, `WSD`, ...). For several
            optimizers its bounds are in the ratio of the LRs, as `min_lr_ratio` and `max_lr_ratio` are.
        ratios: one number > 0 per optimizer: the LR of its first group as a ratio of that of the first optimizer, whose
            number is mostly 1; other groups keep theirs to it. Default None: as the LRs stand in the groups.
        process_group: the ranks whose losses decide together, as in FusedAdamW. Default None: those of the root mesh of
            DTensor parameters, otherwise the default group.
        backend: as in FusedAdamW.

    Raises:
        TypeError: another kind of optimizer or schedule, or an LR that is no tensor.
        ValueError: LRs of one optimizer on several devices, or out of the schedule's bounds; bounds or ratios that do
            not fit several optimizers, or a parameter in two; `mode="max"` over `skip_spikes`.
        RuntimeError: an optimizer has another scheduler, or the backend cannot run there.
    """

    @outside_inference
    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        schedule: Schedule,
        *,
        ratios: Sequence[float] | None = None,
        process_group: Any = None,
        backend: str = "auto",
    ) -> None:
        self._several = isinstance(optimizer, Sequence)
        optimizers: tuple[Any, ...] = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
        for one in optimizers:
            known = _DRIVEN.get(one) if isinstance(one, Optimizer) else None
            checks.check_optimizer(one, None if known is None else known(), several=self._several)
        checks.check_together(optimizers)
        options.check_not_traced("DeviceSchedule()")
        options.check_schedule(schedule)
        if schedule is None:
            raise TypeError(
                "DeviceSchedule: expected a schedule such as GreedyLR(), got schedule=None; construct none without one"
            )
        checks.check_spikes(optimizers, schedule)
        checks.check_no_search(schedule)
        options.check_ranks(process_group, None)
        self._driven = driven = Driven(optimizers)
        device = driven.lrs[0].device
        self.optimizer, self.schedule = optimizer, schedule
        lrs = driven.starting_lrs(ratios)
        self._control = Control(schedule, lrs, max_grad_norm=None, skip_nonfinite=False, device=device)
        if self._several:
            checks.check_bounds(self._control.bounds, lrs)
        self._ranks = Ranks(process_group, None, needs_loss=self._control.needs_loss)
        self._ranks.find(driven.params)
        self._choice = resolve(backend, device)
        kind = self._choice.backend
        self._backend = kind(TensorTable([], self._control, kind.chunk_size, Copies(), False))
        self._mirror = Mirror(self._control)
        self._decided = [
            lr.reshape(tensor.shape) for lr, tensor in zip(self._control.lr.unbind(), driven.lrs, strict=True)
        ]
        self._control.observed = 0
        self._listeners: list[Listener] = []
        self._captures: list[Any] = []  # what captured graphs read; a CapturedStep puts another list here meanwhile
        for one in optimizers:
            checks.warn_of_host_reads(one)
            _DRIVEN[one] = weakref.ref(self)
        self._put_back()

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that it drives, in the order of their groups in `read_lr()` and `metrics().lr`."""
        return self._driven.optimizers

    @outside_graphs  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, *, loss: Any = None) -> None:
        """Decide the LR of the next step; call this after `optimizer.step()`.

        Args:
            loss: the loss of this step: a tensor of one element (the host does not wait for it) or a number. A step
                schedule needs none; after `observe()` none is allowed.

        Raises:
            RuntimeError: a loss-driven schedule and no loss, or something else wrote the LR of a group.
            ValueError: the loss was given twice.
            TypeError: not one number.
        """
        options.check_not_traced("DeviceSchedule.step()")
        self._driven.check()
        if loss is not None:
            losses.check_loss(loss)
            if self._control.observed:
                raise ValueError(
                    "DeviceSchedule.step(): expected the loss once, got it more than once; drop one of step(loss=loss) "
                    "and observe() before step()"
                )
        elif self._control.needs_loss and not self._control.observed:
            raise RuntimeError(
                f"DeviceSchedule.step(): expected a loss, from which {type(self.schedule).__name__} decides, got none; "
                "write step(loss=loss), or observe(loss) per micro-batch and then step()"
            )
        try:
            if self._ranks.moved:
                self._ranks.find(self._driven.params)
            shared = self._ranks.shared(self._control, False)
            in_place = flow.observed_or_in_place(loss, self._backend, self._control, shared)
            if shared is not None:
                self._ranks.add_up(shared, norm=False).wait()
            self._backend.control(in_place)
            keep(self._captures, self._control.device, loss)
        except BaseException:
            self._control.discard_observed()
            raise
        self._control.observed = 0
        self._driven.write(self._decided)
        self._mirror.update()
        for listener in self._listeners:
            listener.after_step()

    @outside_graphs  # type: ignore[untyped-decorator]
    def observe(self, loss: Any, weight: Any = 1.0) -> None:
        """Add the loss of one micro-batch, on the device; the next step takes the weighted mean of all.

        Args:
            loss: tensor of one element, or number; a tensor may be overwritten afterwards.
            weight: number >= 0 or tensor of one element, such as the number of tokens. Default: 1.

        Raises:
            TypeError, ValueError: not one number, or a negative weight.
        """
        weight = losses.check_observed(loss, weight)
        flow.observe(loss, weight, self._backend, self._control)
        keep(self._captures, self._control.device, loss, weight)

    @outside_graphs  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def discard_observed(self) -> None:
        """Drop the losses observed since the last step, for micro-batches that are given up: the next step would count
        them. Does not wait for the device, and may be captured.
        """
        self._control.discard_observed()

    def metrics(self) -> Metrics:
        """Return the latest snapshot of the device state that has arrived, on a CPU the last step's; never waits."""
        self._mirror.update()
        return self._mirror.metrics

    def read_lr(self) -> list[float]:
        """Wait for the device, and return the exact learning rate of each group, which the next step will use, before
        it was rounded to the dtype of the group's tensor.
        """
        found: list[float] = self._control.lr.tolist()
        return found

    def get_last_lr(self) -> list[float]:
        """Return `read_lr()`, under the name that torch's schedulers have for it. Waits for the device."""
        return self.read_lr()

    def start_decay(self, steps: int) -> None:
        """Begin the decay of an open-ended `WSD` with the next step, as `FusedAdamW.start_decay` does.

        Args:
            steps: until the floor is reached, 1 to 2**20.

        Raises:
            RuntimeError: the schedule, or its `base`, is not a WSD without `total_steps`; or the decay has begun.
            ValueError, TypeError: not such a number.
        """
        self._control.start_decay(steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state as numbers and texts, under "control", to save beside that of its optimizer. Of
        several optimizers the state is in it too, in their order under "optimizers", with their own tensors, as torch's
        `state_dict` has it. Waits for the device.
        """
        states = {checks.STATES: self._driven.state_dicts()} if self._several else {}
        return states | {KEY: saved(self._control.numbers())}

    @outside_inference
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict()` returned, to go on from there bit for bit; change nothing if that fails.

        Construct optimizer and schedule, load the optimizer's state, and then the schedule's: torch's loader puts other
        tensors into the groups, and this puts the driven ones back. Several optimizers are loaded by this, each by its
        own `load_state_dict`; where their state was loaded otherwise, as by `torch.distributed.checkpoint`, pass
        `{"control": ...}` alone.

        Of another kind of schedule only the step count and the peak, or without a step schedule the LR, are taken, as
        by `FusedAdamW.load_state_dict`. To begin a new schedule on a loaded optimizer, write LR tensors of the new peak
        to its groups, construct a DeviceSchedule, and load nothing into it.

        Raises:
            TypeError, ValueError: damaged, of another number of optimizers or groups, or of a schedule that compared
                something else.
            Exception: whatever the `load_state_dict` of one of several optimizers raises.
        """
        several = len(self.optimizers) if self._several else 0
        numbers, states = checks.check_saved(state_dict, len(self._driven.lrs), several)
        numbers = fitted(numbers, self._control)
        loaded = self._control.anew([group["initial_lr"] for group in numbers])
        loaded.load(numbers)
        self._driven.check_number_of_groups()
        try:
            if states is not None:
                self._driven.load_state_dicts(states)
            self._control.become(loaded)
        finally:
            self._put_back()
        self._control.observed = 0
        self._mirror = Mirror(self._control)
        for listener in self._listeners:
            listener.after_restart()

    def __repr__(self) -> str:
        shown = ", ".join(map(name, self.optimizers))
        shown = f"[{shown}]" if self._several else shown
        return f"DeviceSchedule({shown}, {self.schedule}, backend: {self._choice})"

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "DeviceSchedule: expected a call of state_dict(), got a request to copy or pickle it; construct another "
            "one for the copy of the optimizer, and load that dictionary into it"
        )

    def _put_back(self) -> None:
        self._driven.put_back()
        self._driven.write(self._decided)

    def _replayed(self) -> None:
        """Show what is known by now, after the replay of a graph with a step in it."""
        self._mirror.update()
        for listener in self._listeners:
            listener.after_replay()
