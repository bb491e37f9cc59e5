"""FusedAdamW: its whole public interface, and a step from top to bottom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused import checkpoint
from greedylr_fused.backends import Backend
from greedylr_fused.control import Control, Schedule
from greedylr_fused.ranks import Ranks
from greedylr_fused.schedules import LevelSearch, Mechanic, SkipSpikes
from greedylr_fused.step import (
    Engine,
    Listener,
    Metrics,
    Rates,
    check_last,
    check_not_in_zero,
    flow,
    losses,
    options,
    outside_graphs,
    storage_options,
)
from greedylr_fused.tensors import CORRECTED, Memory, memory_of, storage

#: Constructor options that a pickle keeps, beside what `checkpoint.get_state` returns.
_OPTIONS = ("_schedule", "_max_grad_norm", "_skip_nonfinite", "_skip_spikes", "_tuner")


class FusedAdamW(Optimizer):
    """AdamW in one pass over memory, with a learning rate that the loss decides on the device.

    Without `schedule` it is a drop-in `torch.optim.AdamW`: same arguments, state names, parameter-group rules, hooks
    and checkpoints; any `torch.optim.lr_scheduler` drives it. With `schedule=GreedyLR(...)` each `step(loss=loss)`
    updates with the current LR, and the loss then decides the next one; with `schedule=Cosine(...)`, or any other step
    schedule, the number of steps taken decides it. The host waits for nothing.

    With `max_grad_norm` or `skip_spikes`, a step with a NaN or infinite gradient is skipped. Ten skips in a row are
    warned of.

    Args:
        params: parameters, named parameters or parameter-group dictionaries; float32, float64, bfloat16, float16 or
            complex, all on one device.
        lr: learning rate, a number >= 0 or a tensor of one element. Default: 1e-3.
        betas: decay of the two moments, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, outside the square root, >= 0. Default: 1e-8.
        weight_decay: decoupled weight decay, >= 0. Default: 1e-2.
        corrected_weight_decay: multiply the weight decay by LR / peak, so that it falls with the square of the LR, as
            AdamC does (arXiv 2506.02285) for weights before a normalisation: give it to their group. True: the peak is
            the group's starting LR; or the peak, a number > 0. Default: False, as in torch.
        amsgrad: divide by the largest second moment so far (arXiv 1904.09237). Default: False.
        maximize: follow the gradient upwards. Default: False.
        schedule: decides the LR from step to step: by the loss (GreedyLR, ReduceOnPlateau), where `lr` is the starting
            LR, or by the step count (Linear, Cosine, WSD, ...), where `lr` is the peak; or searches the level of such a
            curve by trials, which it may undo (Climb, AdaLRS). Skipped steps do not count. Default None: the LR is what
            stands in the parameter groups.
        max_grad_norm: clip the 2-norm of all gradients together to this, as `torch.nn.utils.clip_grad_norm_` does, but
            within the update: `.grad` is left as it is. > 0, or None for no clipping.
        skip_nonfinite: leave parameters, moments, step counts and LR alone in a step with a NaN or infinite gradient.
            Default None: True if `max_grad_norm`, `skip_spikes` or `tuner` is given, or with AdaLRS.
        skip_spikes: skip each step whose loss or gradient norm is far above those before it, as `SkipSpikes` explains.
            Every step then needs a loss, and reads the gradients before the update. Default None: none is skipped so.
        tuner: `Mechanic()` scales the sum of all updates by a factor that it learns; `lr` is then about 1. It takes one
            more float32 copy of the parameters, and reads them with the gradients. Not for 16-bit parameters without
            `master_weights`, nor with Climb or AdaLRS. Default None.
        backend: "auto", or the name of one in `available_backends()`, which then runs or raises.
        state_dtype: storage type of the moments. torch.int8: 8 bits with a scale for each 64 elements, 2.125 bytes per
            parameter for both, in parameters of at least 2 dimensions and 4,096 elements whose rows (the dimensions
            from the second on) are multiples of 64; float32 in all others, such as norms and biases. A group may have
            its own. Default None: the parameter's, as in torch, or float32 with `master_weights`.
        master_weights: what a bfloat16 parameter lacks of its float32 master, kept in the state: "int16", exact, 2
            bytes more, or "int8", a master of 24 bits, rounded stochastically, 1 byte more ("int16" where moments could
            not have 8 bits). A group may have its own. Default None: no master.
        process_group: the ranks whose losses and gradients decide together, a `torch.distributed.ProcessGroup`. Default
            None: those of the root mesh of DTensor parameters, otherwise the default group. A group of one rank, or no
            torch.distributed: this process alone.
        partitions: how many of these ranks hold different parameters, where placements do not tell, so that the norm
            counts each parameter once: the world size under ZeroRedundancyOptimizer, the number of stages of a
            pipeline. Default None: the size of the group for FSDP1's flat parameters, 1 for others, which are replicas.
        foreach: accepted and ignored, as are `fused` and `capturable`: the step is always both.
        differentiable: must be False.

    References: AdamW, arXiv 1711.05101; GreedyLR, arXiv 2512.14527.
    """

    #: GradScaler hands over `grad_scale` and `found_inf` instead of reading them.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        corrected_weight_decay: bool | float = False,
        schedule: Schedule | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool | None = None,
        skip_spikes: SkipSpikes | None = None,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
        master_weights: str | None = None,
        tuner: Mechanic | None = None,
        process_group: Any = None,
        partitions: int | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        options.check_not_traced("FusedAdamW()")
        options.check_schedule(schedule)
        options.check_tuner(tuner)
        options.check_search(schedule, tuner)
        check_not_in_zero(schedule, skip_spikes, tuner)
        options.check_extras(max_grad_norm, skip_nonfinite, skip_spikes)
        storage_options.check_storage(state_dtype, master_weights, amsgrad=amsgrad)
        options.check_ranks(process_group, partitions)
        self._schedule, self._max_grad_norm = schedule, max_grad_norm
        self._skip_spikes, self._tuner = skip_spikes, tuner
        self._skip_nonfinite = options.skips_nonfinite(skip_nonfinite, schedule, max_grad_norm, skip_spikes, tuner)
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        # For torch's AdamW, if it loads our checkpoint: `fused` says that `step` lies on the parameter's device.
        defaults |= dict(maximize=maximize, foreach=None, capturable=False, differentiable=differentiable, fused=True)
        stored = storage.options(state_dtype, master_weights)
        corrected = {CORRECTED: corrected_weight_decay} if corrected_weight_decay is not False else {}
        super().__init__(params, defaults | dict(decoupled_weight_decay=True) | corrected | stored)
        for group in self.param_groups if not stored else ():  # groups that say it themselves were checked
            storage_options.check_params(group, state_dtype)
        for group in self.param_groups:
            storage.complete(group, state_dtype)
            storage_options.check_tuned(group, state_dtype, tuner)
        storage_options.warn_of_no_masters(self.param_groups)
        options.warn_of_low_lr([float(group["lr"]) for group in self.param_groups], tuned=tuner is not None)
        self._listeners: list[Listener] = []
        ranks = Ranks(process_group, partitions, needs_loss=options.needs_loss(schedule, skip_spikes))
        self._engine = Engine(backend, self._device(), state_dtype, ranks, tuned=tuner is not None)
        self._control = self._new_control([float(group["lr"]) for group in self.param_groups])
        self._rates = self._new_rates(self._control)

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, as constructed."""
        return self._schedule

    @property
    def max_grad_norm(self) -> float | None:
        """The clipping limit, as constructed."""
        return self._max_grad_norm

    @property
    def tuner(self) -> Mechanic | None:
        """The tuner, as constructed."""
        return self._tuner

    @property
    def skip_nonfinite(self) -> bool:
        """Return whether a non-finite gradient skips the step."""
        return self._skip_nonfinite

    @property
    def skip_spikes(self) -> SkipSpikes | None:
        """Which steps are skipped as spikes, as constructed."""
        return self._skip_spikes

    @outside_graphs  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update the parameters with the current LR; then the loss decides the next LR.

        Args:
            closure: clears gradients, computes the loss, calls backward, returns the loss. If it calls `observe`, the
                returned loss is not counted again.
            loss: the loss of this step: a tensor of one element (the host does not wait for it) or a number.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a loss-driven schedule or `skip_spikes` and no loss, a sparse gradient, or a step within
                backward() that needs all gradients.
            ValueError: the loss was given twice, or an LR written to `param_groups` is out of bounds.
        """
        options.check_not_traced("FusedAdamW.step()")
        options.warn_of_scheduler(self)
        self._follow_groups()
        result, given = losses.of_step(closure, loss, lambda: self._control)
        if closure is not None:  # which may have changed them
            self._follow_groups()
        control, engine = self._control, self._engine
        if given is None and engine.materialise(self.param_groups, self.state, self._rates.zeroed, control):
            return result  # distributed checkpointing wanted the state, not a step
        losses.check_given(given, control)
        try:
            if control.reads_gradients:
                options.check_outside_backward()
            self._rates.push(self.param_groups, tensors=not engine.lent, for_step=True)
            backend = engine.ready(self.param_groups, self.state) or self._rebuilt()
            try:
                amp = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
                flow.run(backend, control, engine.ranks, given, *amp)
                engine.keep(given)
            finally:  # an interrupt comes when the update returns: what control asked for must not be lost
                engine.release()
                engine.back_up()
            options.warn_of_frozen(self.param_groups, self.state)
            self._rates.pull(self.param_groups)
            if engine.backup is not None and not self._rates.searching:
                engine.end_search()
            for listener in self._listeners:
                listener.after_step()
        except BaseException:
            control.discard_observed()
            raise
        control.observed = 0
        return result

    @outside_graphs  # type: ignore[untyped-decorator]
    def observe(self, loss: Any, weight: Any = 1.0) -> None:
        """Add the loss of one micro-batch, on the device; the next step uses the weighted mean of all.

        Args:
            loss: tensor of one element, or number; a tensor may be overwritten afterwards.
            weight: number >= 0 or tensor of one element, such as the number of tokens. Default: 1.

        Raises:
            TypeError, ValueError: not one number, or a negative weight.
        """
        self._engine.observe(loss, losses.check_observed(loss, weight), self._control)

    @outside_graphs  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def discard_observed(self) -> None:
        """Drop the losses observed since the last step, for micro-batches that are given up: the next step would count
        them. Does not wait for the device, and may be captured.
        """
        self._control.discard_observed()

    def metrics(self) -> Metrics:
        """Refresh `group["lr"]`, and return the latest snapshot that has arrived; waits only if groups have changed."""
        self._follow_groups()
        self._rates.pull(self.param_groups)
        return self._rates.metrics

    def read_lr(self) -> list[float]:
        """Wait for the device, and return the exact learning rate of each group, which the next step will use."""
        self._take_written()
        return list(self._control.lr.tolist())

    def set_lr(self, lr: float | Tensor | Sequence[float]) -> None:
        """Write the learning rate, one number or one per group, to the device at once: captured graphs see it too.

        The schedule goes on from this LR; its counters, best, bounds and starting LR stay. A step schedule scales its
        peak so that the curve gives this LR now: half the LR halves all that follow. A peak above 10 times the starting
        LR is refused; early in a warm-up an ordinary LR needs one. Where the curve is 0, the LR holds for one step.
        With a `base`, the bounds are those of the LR before the factor of the base. Under a search, whose windows scale
        the LR too, write a multiple of `read_lr()`: the starting LR moves with it. There 0 holds for one step.

        Raises:
            TypeError, ValueError: not numbers, outside the bounds, negative, not finite, or the wrong number of them.
            RuntimeError: a CUDA graph is being captured.
        """
        self._follow_groups()
        self._rates.set(self.param_groups, lr)

    def start_decay(self, steps: int) -> None:
        """Begin the decay of an open-ended `WSD` with the next step, on the device: captured graphs see it too. A
        warm-up that is not over goes on, and the LR is the product of both.

        Args:
            steps: until the floor is reached, 1 to 2**20.

        Raises:
            RuntimeError: the schedule, or its `base`, is not a WSD without `total_steps`; or the decay has begun.
            ValueError, TypeError: not such a number.
        """
        self._take_written()
        self._control.start_decay(steps)

    def keep_copies(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keep 16-bit copies of parameters: each is written now, and by every step that updates its parameter; on the
        CPU in the same pass over memory, if both have the same strides.

        Each call replaces the pairs given before, and `keep_copies([])` drops them. No checkpoint, deepcopy or pickle
        has the copies: call this again on the new optimizer. Call it also after writing to a parameter by hand.

        Args:
            pairs: `(parameter, copy)`: a float32 parameter of this optimizer, and a bfloat16 or float16 tensor of its
                shape on its device, such as the model's own parameter.

        Raises:
            TypeError: not pairs of tensors, or of another dtype.
            ValueError: a parameter that is not in the optimizer, or a copy of another shape or device, or one given
                twice.
        """
        self._engine.copies.keep(pairs, set(self._params()))
        self._engine.discard()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as in torch, with the optimizer's own tensors: `copy.deepcopy` it to keep what it holds now.
        With a schedule this waits for the device, and each group has its exact LR and, as "control", the schedule's
        numbers; "spikes" has the last losses and norms for `skip_spikes`, "tuner" a tuner's numbers, beside the states
        "mechanic_offset" and "mechanic_s". Without these the keys are those of torch's AdamW, which can load it.

        Within a trial of a level search parameters, state and numbers are the trial's, whatever is saved first, and the
        backup is not saved: loaded, they go on from there without a verdict, and the trial begins anew.

        8-bit moments are "exp_avg_q" (int8), "exp_avg_sq_q" (uint8) and the float32 scales of 64 elements each,
        "exp_avg_scale" and "exp_avg_sq_scale"; a master is a "remainder" (int8, or an int16 as two bytes in a last
        dimension). torch's AdamW does not know them, and fails: `export_state_dict()` is for it.
        """
        numbers = None if self._schedule is None else self._numbers
        return checkpoint.save(self, numbers, self._engine.shown, lambda: self._control)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of FusedAdamW or of `torch.optim.AdamW`: all of it or, if anything fails, nothing.

        Moments get `state_dtype`, by default the wider of the checkpoint's and the parameter's dtype, but float64 only
        for float64 parameters. Those on the parameters' device are copied, and the old ones stay until all is loaded:
        if memory is short, load with `map_location="cpu"`. Codes of 8 bits stay as they are, or are decoded; other
        moments are rounded to the nearest code. Remainders become the nearest of `master_weights` beside the parameter
        as it is, or 0 where the checkpoint has none: load the model too, before or after.

        torch.distributed.checkpoint reads files by the names and dtypes that it finds here. Load a file of another
        `state_dict`, such as torch's, into an optimizer constructed as its own, and that one's state_dict() into this.

        The schedule keeps its own options; of a longer window it takes the newest losses, as `skip_spikes` does, which
        begins without any where the checkpoint has none. Where the checkpoint has no numbers of a schedule, as from
        torch's AdamW, it starts anew from the LRs there: a step schedule at its first step or, after a run that a torch
        scheduler drove, at that run's step on the curve from the scheduler's peak.

        Args:
            state_dict: what `state_dict()` returned.

        Raises:
            TypeError, ValueError: not a checkpoint of these parameters and groups, damaged numbers, or those of a
                schedule that compared something else, by another `mode` or `smooth`. Names the key.
            Exception: whatever a hook raises, or a lack of memory.
        """
        self._follow_groups()
        checkpoint.load(self, state_dict, self._control, self._engine, self._restart)

    def export_state_dict(self) -> dict[str, Any]:
        """Return a state_dict for `torch.optim.AdamW`: 8-bit moments decoded to new float32 tensors, no remainders, and
        no keys but torch's. torch's loader rounds all moments to their parameter's dtype, float32 ones of bfloat16
        parameters too; masters go by `master_weights()`. With a schedule this waits for the device.
        """
        return checkpoint.masters.for_torch_adamw(self.state_dict())

    @torch.no_grad()
    def master_weights(self) -> dict[Any, Tensor]:
        """Return the parameters as new float32 tensors (DTensors where they are), wider or complex ones in their own
        dtype: each with the remainder that `master_weights=` keeps, if any.

        Returns:
            By the name of each parameter, if the optimizer was constructed with named parameters, otherwise by its
            number in `state_dict()`. Tied ones are there once.
        """
        return checkpoint.masters.join(self.param_groups, self.state)

    @torch.no_grad()
    def load_master_weights(self, weights: Mapping[Any, Tensor] | Iterable[Any]) -> None:
        """Write float32 weights into parameters and remainders, in place: captured graphs see them, copies get them.
        Moments and step counts stay; where a parameter has no state yet, it is made, at step 0. With
        `master_weights="int8"` a master is rounded to the nearest of 24 bits, without any the parameter to its dtype.

        Args:
            weights: what `master_weights()` returns, or float tensors in that order or as `named_parameters()` gives
                them; for a DTensor its own placements, or the whole on every rank.

        Raises:
            TypeError, ValueError: other keys, another number of them, or not such a tensor; nothing is written then.
            RuntimeError: the optimizer has 16-bit parameters and keeps no masters.
        """
        keeps = any(group.get("master_weights") for group in self.param_groups)
        make = functools.partial(self._engine.init_states, self.param_groups, self.state, of_all=True)
        checkpoint.masters.load(weights, self.param_groups, self.state, make if keeps else lambda: None)
        self._engine.copies.keep(self._engine.copies.of.items(), set(self._params()))

    def memory(self) -> Memory:
        """Return the bytes on this rank of parameters, gradients and states, from shapes and options: before the first
        step, and on the meta device, as after. Step counts, tables and `keep_copies` are not in it, but in the backup
        of a level search, until that is over.
        """
        copies = self._engine.copies.of if self._rates.searching else None
        return memory_of(self.param_groups, self._engine.state_dtype, tuned=self._tuner is not None, backed_up=copies)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in torch. With a schedule, the group starts at its own `lr`, with bounds from that,
        and follows all later decisions; other groups and the schedule's state stay. The next step waits for the device.
        """
        super().add_param_group(param_group)
        known = (self._engine.state_dtype, self._control) if "_control" in vars(self) else ()  # while constructed
        check_last(self.param_groups, *known)

    def check_ranks_agree(self) -> None:
        """Check that every rank holds the same control vector (schedule, counters, LRs, norm), bit for bit: for tests,
        and for runs whose ranks seem to differ. Every rank must call this, and waits for all others.

        Raises:
            RuntimeError: on every rank alike; names a slot, the ranks and their values.
        """
        self._engine.find_ranks(self._params())
        self._engine.ranks.check_agree(self._control)

    def __repr__(self) -> str:
        shown = checkpoint.without_marks(super().__repr__(), schedule=self._schedule is not None)
        extras = (("skip_spikes", self._skip_spikes), ("tuner", self._tuner))
        more = "".join(f"\n{name}: {option}" for name, option in extras if option is not None)
        return f"{shown[:-1]}backend: {self._engine.choice}\nschedule: {self.schedule}{more}\n)"

    def __getstate__(self) -> dict[str, Any]:
        self._take_written()
        own = {name: vars(self)[name] for name in _OPTIONS}
        return checkpoint.get_state(self, self._control, self._engine) | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        made = checkpoint.set_state(self, state)
        if made is not None:
            self._listeners = []  # the original keeps its own
            needs_loss = options.needs_loss(self._schedule, self._skip_spikes)
            self._engine = checkpoint.engine(made, self._device(), needs_loss=needs_loss, tuned=self._tuner is not None)
            self._control = self._new_control(checkpoint.starting_lrs(made))
            checkpoint.fill(self._control, made)
            self._rates = self._new_rates(self._control)

    def _new_control(self, lrs: Sequence[float]) -> Control:
        return Control(
            self._schedule,
            lrs,
            max_grad_norm=self._max_grad_norm,
            skip_nonfinite=self._skip_nonfinite,
            skip_spikes=self._skip_spikes,
            device=self._device(),
            tuner=self._tuner,
        )

    def _new_rates(self, control: Control) -> Rates:
        """Return a new view of the control for the host."""
        lrs = None if self._schedule is None else control.initial_lrs
        checkpoint.mark(self.param_groups, lrs, spikes=self._skip_spikes is not None, tuned=self._tuner is not None)
        return Rates(control, self.param_groups, has_schedule=self._schedule is not None)

    def _device(self) -> torch.device:
        """Return the parameters' device now: torch lets a model move, or get its memory, after construction."""
        device = next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        return torch.device("cpu") if device.type == "meta" else device

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _rebuilt(self) -> Backend:
        """Return the backend over a new table: parameters, states or dtypes of gradients have changed."""
        checkpoint.drop_stale(self.param_groups, with_control=self._schedule is not None)
        if self._device() != self._control.device:
            self._control.to(self._device())
            self._restart()
        snapshot = self._schedule.snapshot if isinstance(self._schedule, LevelSearch) else None
        wanted = snapshot if self._rates.searching else None
        return self._engine.rebuilt(self.param_groups, self.state, self._control, wanted)

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
            for group in self.param_groups:
                for name in filter(self.defaults.__contains__, storage.OPTIONS):
                    group.setdefault(name, self.defaults[name])
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

    def _replayed(self) -> None:
        """Show what is known by now, after the replay of a graph with a step in it."""
        self._rates.pull(self.param_groups)
        for listener in self._listeners:
            listener.after_replay()

    def _measure_norms(self) -> None:
        """Let each step from now on measure the 2-norm and 1-norm of all gradients. Every rank must call this.

        Raises:
            RuntimeError: a graph was captured before, which would not measure them.
        """
        self._engine.measure_norms(self._params(), self._control)

    @property
    def _captures(self) -> list[Any]:
        """The list that keeps what the graph being captured reads."""
        return self._engine.captures[-1]
