"""FusedAdamW: the step as a reader should think of it, and the public interface around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused import checkpoint, options
from greedylr_fused.control import Control
from greedylr_fused.distributed import sum_over_ranks
from greedylr_fused.engine import Engine
from greedylr_fused.mirror import Metrics
from greedylr_fused.rates import Rates, per_group
from greedylr_fused.schedules import GreedyLR


class FusedAdamW(Optimizer):
    """AdamW in one pass over memory, with a learning rate that the loss decides on the device.

    Without `schedule` it is a drop-in `torch.optim.AdamW`: same arguments, state names, parameter-group rules, hooks
    and checkpoints; any `torch.optim.lr_scheduler` drives it. With `schedule=GreedyLR(...)` each `step(loss=loss)`
    updates with the current LR, and the loss then decides the next one; the host waits for nothing.

    Args:
        params: parameters, named parameters or parameter-group dictionaries; float32, float64, bfloat16, float16 or
            complex, all on one device.
        lr: learning rate, a number >= 0 or a tensor of one element. Default: 1e-3.
        betas: decay of the two moments, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, outside the square root, >= 0. Default: 1e-8.
        weight_decay: decoupled weight decay, >= 0. Default: 1e-2.
        amsgrad: divide by the largest second moment so far (arXiv 1904.09237). Default: False.
        maximize: follow the gradient upwards. Default: False.
        schedule: a loss-driven schedule, or None.
        max_grad_norm: clip the gradients to this 2-norm over all of them, as `torch.nn.utils.clip_grad_norm_` would;
            folded into the update, `.grad` is left as it is. > 0, or None for no clipping.
        skip_nonfinite: leave parameters, moments, step counts and LR alone in a step with a NaN or infinite gradient.
            Default None: if `max_grad_norm` is given, since the gradients are read for it anyway.
        backend: "auto", or the name of one in `available_backends()`, which then runs or raises.
        state_dtype: storage type of the moments. Default None: the parameter's, as in torch; float32 is advised for
            bfloat16 and float16 parameters, at 8 bytes more traffic per parameter.
        foreach, fused, capturable: accepted for torch's signature; this optimizer is always both fused and capturable.
        differentiable: must be False.

    References:
        AdamW: arXiv 1711.05101. GreedyLR: arXiv 2512.14527.
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
        schedule: GreedyLR | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool | None = None,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if schedule is not None and not isinstance(schedule, GreedyLR):
            raise TypeError(f"schedule: got {type(schedule).__name__}, allowed is a GreedyLR or None; write GreedyLR()")
        options.check_extras(max_grad_norm, skip_nonfinite, state_dtype)
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = max_grad_norm is not None if skip_nonfinite is None else skip_nonfinite
        defaults: dict[str, Any] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize
        )
        # For torch's AdamW, should it load our checkpoint: `fused` says that `step` lies on the parameter's device.
        defaults |= dict(foreach=None, capturable=False, differentiable=differentiable, fused=True)
        super().__init__(params, defaults | dict(decoupled_weight_decay=True))
        self._observed = False
        for index, group in enumerate(self.param_groups):
            options.check_group(group, index)
        self._control = self._new_control([float(group["lr"]) for group in self.param_groups])
        self._engine = Engine(backend, self._control.device, state_dtype)
        self._rates = Rates(self._control, self.param_groups, driven=schedule is not None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update with the current LR; then the loss decides the next one.

        Args:
            closure: clears gradients, computes the loss, calls backward, returns the loss.
            loss: the loss of this step: a tensor of one element (it is not waited for) or a number.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a loss-driven schedule and no loss, or a sparse gradient.
            ValueError: the loss was given twice, or an LR written to `param_groups` is out of bounds.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        given = options.one_loss(loss, result, observed=self._observed, driven=self.schedule is not None)
        if given is None and not self._observed and self._materialise():
            return result
        if self._device() != self._control.device:
            self._control.to(self._device())
            self._restart()
        self._rates.push(self.param_groups)
        backend = self._engine.ready(self.param_groups, self.state, self._control)
        if given is not None:
            self.observe(given)
        if self.schedule is not None:
            sum_over_ranks(self._control.pending)
        scaled = self._control.set_amp(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        if reads := self.max_grad_norm is not None or self.skip_nonfinite:
            backend.measure()
        if reads or scaled:
            backend.decide()
        backend.update()
        backend.commit()
        self._observed = False
        self._engine.release()
        self._rates.pull(self.param_groups)
        return result

    def observe(self, loss: Any, weight: Any = 1.0) -> None:
        """Add the loss of one micro-batch, on the device; the next step uses the weighted mean of all.

        Args:
            loss: tensor of one element, or number.
            weight: number >= 0 or tensor of one element, such as the number of tokens. Default: 1.

        Raises:
            TypeError, ValueError: not one number, or a negative weight.
        """
        options.check_loss(loss)
        options.check_weight(weight)
        with torch.no_grad():
            self._control.observe(loss, weight)
        self._observed = True

    def metrics(self) -> Metrics:
        """The latest snapshot of the device state that has arrived; never waits. On a CPU that of the last step."""
        self._rates.pull(self.param_groups)
        return self._rates.metrics

    def last_lr(self) -> list[float]:
        """The exact learning rate of each group, that the next step will use. Waits for the device."""
        self._rates.push(self.param_groups)
        return self._control.lr.tolist()

    def set_lr(self, lr: float | Tensor | Sequence[float]) -> None:
        """Write the learning rate, one number or one per group, to the device at once: captured graphs see it too.

        The schedule goes on from there; its counters, best, bounds and starting LR stay.

        Raises:
            ValueError: outside the schedule's bounds, or the wrong number of values.
        """
        self._rates.set(self.param_groups, per_group(lr, len(self.param_groups)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. With a schedule it starts at its own `lr`, with bounds from that, and follows the
        decisions from then on; the other groups and the schedule's state are left alone. Waits for the device.
        """
        super().add_param_group(param_group)
        try:
            options.check_group(self.param_groups[-1], len(self.param_groups) - 1)
            if "_control" in self.__dict__:
                self._rates.push(self.param_groups[:-1])  # an LR written before this call counts
                self._control = self._control.grown(float(self.param_groups[-1]["lr"]))
                self._restart()
        except Exception:
            self.param_groups.pop()
            raise
        self.param_groups[-1].setdefault(checkpoint.KEY, {})

    def state_dict(self) -> dict[str, Any]:
        """As in torch; each group also carries the exact LR and, under "control", the schedule's state as numbers.
        Waits for the device.
        """
        numbers = self._numbers()
        packed = super().state_dict()
        for group, own in zip(packed["param_groups"], numbers, strict=True):
            group[checkpoint.KEY] = own
            if self.schedule is not None:
                group["lr"] = own["lr"]
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of FusedAdamW or of `torch.optim.AdamW`.

        Moments keep the wider of the checkpoint's and the parameter's dtype. Without control numbers (a checkpoint of
        torch's AdamW) the schedule starts anew from the LRs in the checkpoint. The schedule's options stay as
        constructed.

        Raises:
            ValueError: other groups, damaged control numbers, or a window longer than the schedule's. Nothing is
                changed then.
        """
        previous = dict(self.state)
        found: dict[str, Any] = {}

        def inspect(_: Optimizer, loaded: dict[str, Any]) -> None:
            found.update(loaded=loaded, control=self._loaded_control(loaded["param_groups"]))

        handle = self.register_load_state_dict_pre_hook(inspect)  # runs after all others
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        checkpoint.restore_moments(found["loaded"], self.param_groups, self.state, self._engine.state_dtype, previous)
        self._control.vector.copy_(found["control"].vector)
        self._control.bounds = found["control"].bounds
        self._observed = False
        self._restart()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}backend: {self._engine.choice}\nschedule: {self.schedule}\n)"

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("schedule", "max_grad_norm", "skip_nonfinite")}
        own |= {"_observed": False, "_numbers_": self._numbers()}
        own["_engine"] = (self._engine.name, self._engine.state_dtype)
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        numbers = state.get("_numbers_")
        super().__setstate__({key: value for key, value in state.items() if key != "_numbers_"})
        for group in self.param_groups:
            for name, value in (("amsgrad", False), ("maximize", False), (checkpoint.KEY, {})):
                group.setdefault(name, value)
            group["decoupled_weight_decay"] = True
        if numbers is not None:
            name, state_dtype = state["_engine"]
            self._engine = Engine(name, self._device(), state_dtype)
            self._control = self._new_control([own["initial_lr"] for own in numbers])
            self._control.load(numbers)
            self._rates = Rates(self._control, self.param_groups, driven=self.schedule is not None)

    def _new_control(self, lrs: Sequence[float]) -> Control:
        norm, skip = self.max_grad_norm, self.skip_nonfinite
        return Control(self.schedule, lrs, max_grad_norm=norm, skip_nonfinite=skip, device=self._device())

    def _device(self) -> torch.device:
        """Where the parameters are; torch allows to move a model after the optimizer was constructed."""
        return next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))

    def _restart(self) -> None:
        """Groups, states or the control's memory were replaced: build tables and mirror anew at the next step."""
        self._engine.discard()
        for group in self.param_groups:
            group[checkpoint.KEY] = {}
        self._rates = Rates(self._control, self.param_groups, driven=self.schedule is not None)

    def _numbers(self) -> list[dict[str, Any]]:
        self._rates.push(self.param_groups)
        return self._control.numbers()

    def _loaded_control(self, groups: Sequence[dict[str, Any]]) -> Control:
        """The control that a checkpoint describes; raises before anything is changed."""
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"checkpoint: got {len(groups)} parameter groups, allowed are the {len(self.param_groups)} of this "
                "optimizer; construct it with the groups of the run that wrote the checkpoint"
            )
        numbers = checkpoint.read_control(groups)
        if numbers is None:
            return self._control.anew([float(group["lr"]) for group in groups])
        control = self._control.anew([own["initial_lr"] for own in numbers])
        control.load(numbers)
        return control

    def _materialise(self) -> bool:
        """Distributed checkpointing creates state by a step with LR 0, zero gradients and no loss: do just that and
        return True. Without a schedule the first step of a warm-up from LR 0 looks the same but for its gradients;
        they are read in that one step.
        """
        fresh = not self.state and all(float(group["lr"]) == 0.0 for group in self.param_groups)
        if self.schedule is not None and not fresh:
            raise RuntimeError(options.NO_LOSS)
        grads = (param.grad for group in self.param_groups for param in group["params"] if param.grad is not None)
        if self.schedule is None and (not fresh or any(grad.is_sparse or bool(grad.any()) for grad in grads)):
            return False
        self._engine.init_states(self.param_groups, self.state)
        return True
