"""FusedAdamW: the step as a reader should think of it, and the public interface around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import pickling
from greedylr_fused.checkpoint import state_dict as checkpoint
from greedylr_fused.control.vector import Control, Schedule
from greedylr_fused.ranks import agreement
from greedylr_fused.ranks.ranks import Ranks
from greedylr_fused.step import flow, losses, options, rates
from greedylr_fused.step.engine import Engine
from greedylr_fused.step.flow import outside_graphs
from greedylr_fused.step.listener import Listener
from greedylr_fused.step.mirror import Metrics
from greedylr_fused.step.rates import Rates
from greedylr_fused.tensors import copies


class FusedAdamW(Optimizer):
    """AdamW in one pass over memory, with a learning rate that the loss decides on the device.

    Without `schedule` it is a drop-in `torch.optim.AdamW`: same arguments, state names, parameter-group rules, hooks
    and checkpoints; any `torch.optim.lr_scheduler` drives it. With `schedule=GreedyLR(...)` each `step(loss=loss)`
    updates with the current LR, and the loss then decides the next one; with `schedule=Cosine(...)`, or any other step
    schedule, the number of steps taken decides it. The host waits for nothing.

    Args:
        params: parameters, named parameters or parameter-group dictionaries; float32, float64, bfloat16, float16 or
            complex, all on one device.
        lr: learning rate, a number >= 0 or a tensor of one element. Default: 1e-3.
        betas: decay of the two moments, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, outside the square root, >= 0. Default: 1e-8.
        weight_decay: decoupled weight decay, >= 0. Default: 1e-2.
        amsgrad: divide by the largest second moment so far (arXiv 1904.09237). Default: False.
        maximize: follow the gradient upwards. Default: False.
        schedule: what decides the LR from step to step: the loss (GreedyLR, ReduceOnPlateau), or the step alone
            (Linear, Cosine, WSD, ...); `lr` is then where it starts, or its peak. Steps that are skipped do not
            count. Default None: the LR is what stands in the parameter groups.
        max_grad_norm: clip the gradients to this 2-norm over all of them, as `torch.nn.utils.clip_grad_norm_` would;
            folded into the update, `.grad` is left as it is. > 0, or None for no clipping.
        skip_nonfinite: leave parameters, moments, step counts and LR alone in a step with a NaN or infinite gradient.
            Default None: if `max_grad_norm` is given, since the gradients are read for it anyway.
        backend: "auto", or the name of one in `available_backends()`, which then runs or raises.
        state_dtype: storage type of the moments. Default None: the parameter's, as in torch; float32 is advised for
            bfloat16 and float16 parameters, at 8 bytes more traffic per parameter.
        process_group: the ranks whose losses and gradients decide together, a `torch.distributed.ProcessGroup`. Default
            None: those of the root mesh of DTensor parameters, otherwise the default group. A group of one rank, or no
            torch.distributed: this process alone.
        partitions: into how many parts parameters are divided over these ranks beyond what DTensor placements say, for
            the norm of all: the world size under ZeroRedundancyOptimizer, the number of stages of a pipeline. Default
            None: the size of the group for FSDP1's flat parameters, 1 for others, which are replicas.
        foreach, fused, capturable: accepted for torch's signature; this optimizer is always both fused and capturable.
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
        schedule: Schedule | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool | None = None,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
        process_group: Any = None,
        partitions: int | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        options.check_schedule(schedule)
        options.check_not_in_zero(schedule)
        options.check_extras(max_grad_norm, skip_nonfinite, state_dtype)
        options.check_ranks(process_group, partitions)
        self._schedule, self._max_grad_norm = schedule, max_grad_norm
        self._skip_nonfinite = max_grad_norm is not None if skip_nonfinite is None else skip_nonfinite
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        # For torch's AdamW, should it load our checkpoint: `fused` says that `step` lies on the parameter's device.
        defaults |= dict(maximize=maximize, foreach=None, capturable=False, differentiable=differentiable, fused=True)
        super().__init__(params, defaults | dict(decoupled_weight_decay=True))
        self._listeners: list[Listener] = []
        for index, group in enumerate(self.param_groups):
            options.check_group(group, index)
            options.check_params(group["params"], state_dtype)
        ranks = Ranks(process_group, partitions, driven=options.needs_loss(schedule))
        self._engine = Engine(backend, self._device(), state_dtype, ranks)
        self._control = self._new_control([float(group["lr"]) for group in self.param_groups])
        self._rates = Rates(self._control, self.param_groups, driven=schedule is not None)
        checkpoint.mark(self.param_groups, with_control=self.schedule is not None)

    schedule = property(attrgetter("_schedule"), doc="The schedule, as constructed.")
    max_grad_norm = property(attrgetter("_max_grad_norm"), doc="The clipping limit, as constructed.")
    skip_nonfinite = property(attrgetter("_skip_nonfinite"), doc="Whether a non-finite gradient skips the step.")
    last_lr, set_lr, start_decay = rates.last_lr, rates.set_lr, rates.start_decay
    write_copies = copies.write_copies
    check_ranks_agree = agreement.check_ranks_agree
    state_dict, load_state_dict = checkpoint.state_dict, checkpoint.load_state_dict
    __getstate__, __setstate__ = pickling.get_state, pickling.set_state

    @outside_graphs  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update with the current LR; then the loss decides the next one.

        Args:
            closure: clears gradients, computes the loss, calls backward, returns the loss. If it calls `observe`, what
                it returns is not counted again.
            loss: the loss of this step: a tensor of one element (it is not waited for) or a number.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a loss-driven schedule and no loss, a sparse gradient, or a step within backward() that needs
                all gradients.
            ValueError: the loss was given twice, or an LR written to `param_groups` is out of bounds.
        """
        options.warn_of_scheduler(self)
        before = self._control.observed
        result = None if closure is None else losses.call(closure)
        returned = result if self._control.observed == before else None  # otherwise it has observed what it returns
        if returned is not None and self._control.needs_loss:
            losses.check_whole(closure)
        self._take_step(loss, returned)
        return result

    def _take_step(self, loss: Any, returned: Any = None) -> None:
        """`step` without its closure, which has returned this."""
        given = losses.one_loss(loss, returned, observed=self._control.observed > 0, driven=self._control.needs_loss)
        losses.warn_of_number(given, self._control.device)
        if given is None and self._materialised():
            return
        try:
            self._step(given)
        except BaseException:
            self._control.forget_observed()
            raise
        self._control.observed = 0

    def _materialised(self) -> bool:
        zeroed, needs_loss = self._rates.zeroed, self._control.needs_loss
        observed = self._control.observed > 0
        if self._engine.materialise(self.param_groups, self.state, zeroed, driven=needs_loss, observed=observed):
            return True
        if needs_loss and not observed:
            raise RuntimeError(losses.no_loss(self.schedule))
        return False

    def _step(self, loss: Any) -> None:
        if self._control.reads_gradients:
            options.check_outside_backward()
        self._take_written()
        if (backend := self._engine.ready(self.param_groups, self.state)) is None:
            if self._device() != self._control.device:
                self._control.to(self._device())
                self._restart()
            backend = self._engine.rebuilt(self.param_groups, self.state, self._control)
        try:
            if loss is not None:
                self._control.observe(loss, 1.0)
            amp = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
            flow.run(backend, self._control, self._engine.ranks, *amp)
        finally:
            self._engine.release()
        if not self.state:
            options.warn_of_frozen(self.param_groups)
        self._rates.pull(self.param_groups)
        for listener in self._listeners:
            listener.stepped()

    def _replayed(self) -> None:
        """A graph that was captured with a step in it was replayed: show what is known by now."""
        self._rates.pull(self.param_groups)
        for listener in self._listeners:
            listener.replayed()

    @outside_graphs  # type: ignore[untyped-decorator]
    def observe(self, loss: Any, weight: Any = 1.0) -> None:
        """Add the loss of one micro-batch, on the device; the next step uses the weighted mean of all.

        Args:
            loss: tensor of one element, or number.
            weight: number >= 0 or tensor of one element, such as the number of tokens. Default: 1.

        Raises:
            TypeError, ValueError: not one number, or a negative weight.
        """
        losses.check_loss(loss)
        losses.check_weight(weight)
        with torch.no_grad():
            self._control.observe(loss, weight if isinstance(weight, Tensor) else float(weight))

    def metrics(self) -> Metrics:
        """The latest snapshot of the device state that has arrived; never waits. On a CPU that of the last step."""
        self._rates.pull(self.param_groups)
        return self._rates.metrics

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. With a schedule it starts at its own `lr`, with bounds from that, and follows the
        decisions from then on; the other groups and the schedule's state are left alone. Waits for the device.
        """
        before = (vars(self).get("_control"), vars(self).get("_rates"))
        if before[0] is not None:
            self._take_written()  # an LR written before this call counts
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            options.check_group(group, len(self.param_groups) - 1)
            if any(param.is_complex() for param in group["params"]):
                group["fused"] = False  # torch's own has no complex kernel
            if before[0] is not None:
                options.check_params(group["params"], self._engine.state_dtype)
                self._control = self._control.grown(float(group["lr"]))
                self._restart()
        except BaseException:
            self.param_groups.pop()
            self._control, self._rates = before  # type: ignore[assignment]
            raise

    def __repr__(self) -> str:
        shown = super().__repr__().replace("    control: {}\n", "")  # of no interest but to distributed checkpointing
        return f"{shown[:-1]}backend: {self._engine.choice}\nschedule: {self.schedule}\n)"

    def _new_control(self, lrs: Sequence[float]) -> Control:
        return Control(
            self.schedule,
            lrs,
            max_grad_norm=self.max_grad_norm,
            skip_nonfinite=self.skip_nonfinite,
            device=self._device(),
        )

    def _device(self) -> torch.device:
        """Where the parameters are; torch allows to move a model, or give it memory, after construction."""
        device = next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        return torch.device("cpu") if device.type == "meta" else device

    def _measure_norms(self) -> None:
        """Let each step measure the 2-norm and the 1-norm of all gradients, from now on. Every rank must call it.

        Raises:
            RuntimeError: a captured graph would not.
        """
        if self._control.measures_l1:
            return
        if self._engine.captured:
            raise RuntimeError(
                "Recorder(grad_norms=True): expected a call before a CUDA graph is captured, got one after; replays "
                "would not measure the norms: construct the recorder first"
            )
        self._engine.ranks.any(self._params(), True)  # all of them or none: they add up other slots from now on
        self._control.measures_l1 = True
        self._engine.discard()

    def _params(self) -> list[Tensor]:
        """Of all groups, in order."""
        return [param for group in self.param_groups for param in group["params"]]

    def _take_written(self) -> None:
        """Take over what the host wrote to the groups: learning rates, or numbers of a checkpoint."""
        options.check_groups(len(self.param_groups), self._control.n_groups)
        self._rates.push(self.param_groups)

    def _restart(self) -> None:
        """Groups, states or the control's memory were replaced: build tables and mirror anew at the next step."""
        self._engine.discard()
        checkpoint.mark(self.param_groups, with_control=self.schedule is not None)
        self._rates = Rates(self._control, self.param_groups, driven=self.schedule is not None)
        for listener in self._listeners:
            listener.restarted()

    def _numbers(self) -> list[dict[str, Any]]:
        self._take_written()
        return self._control.numbers()
