"""FusedAdamW in the Trainer of transformers 5, and in any subclass of it: `use_fused_adamw(trainer)`, then train.

    create_optimizer      a FusedAdamW, through the Trainer's own `optimizer_cls_and_kwargs`
    training_step         its loss is added to that of the window, on the device
    _clip_grad_norm       nothing: the limit is folded into the update; the norm is read when it is logged
    optimizer.step        observes the loss of the window, updates, decides the next LR
    create_scheduler      a stand-in that shows this LR

These are methods of one Trainer, and what they do, in the order of its calls. None waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from transformers import Trainer

from greedylr_fused.control import Schedule
from greedylr_fused.integrations import transformers_checks as checks
from greedylr_fused.integrations.shown_lr import ShownLR
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import GreedyLR
from greedylr_fused.step import options as adamw_options

_GREEDY = GreedyLR()


def use_fused_adamw(
    trainer: Trainer, *, schedule: Schedule | Callable[[int], Schedule] | None = _GREEDY, **options: Any
) -> None:
    """Make a Trainer train with FusedAdamW, and let the loss of each step decide the learning rate.

    Call it once, before `trainer.train()`. Learning rate (where it starts, or its peak), betas, eps, weight decay and
    `max_grad_norm` are those of the TrainingArguments; parameters are grouped as the Trainer groups them. The loss of a
    step is what `training_step` returned, added up over the micro-batches and averaged over the ranks, as in the
    Trainer's logs. Each `train()` begins with a new optimizer, unless it resumes.

    Args:
        trainer: a `transformers.Trainer` or an object of any subclass, without an optimizer so far.
        schedule: as in FusedAdamW, or a function that returns it and is given the number of training steps, such as
            `lambda steps: GreedyLR(base=Cosine(steps))`. With None, `lr_scheduler_type` decides the LR, as before.
            Default: `GreedyLR()`.
        options: other options of FusedAdamW: amsgrad, maximize, skip_nonfinite, skip_spikes, backend, state_dtype,
            process_group, partitions.

    Raises:
        TypeError, ValueError: not a Trainer, not a schedule, or not such an option.
        RuntimeError: a Trainer that this cannot work with, such as one with an optimizer or with DeepSpeed.
    """
    checks.check_trainer(trainer, REPLACED)
    checks.check_options(options)
    if not checks.is_function(schedule):
        adamw_options.check_schedule(schedule)
    Driver(trainer, schedule, options).attach()


class Driver:
    """Link between a Trainer and its FusedAdamW: methods in place of the Trainer's, in that one object.

    Args:
        trainer, schedule, options: as in `use_fused_adamw`.

    Attributes:
        optimizer: the FusedAdamW of the current or last training, None before the first.
    """

    def __init__(
        self, trainer: Trainer, schedule: Schedule | Callable[[int], Schedule] | None, options: dict[str, Any]
    ) -> None:
        self._trainer: Any = trainer
        self._schedule: Any = schedule
        self._options = options
        self._replaced: dict[str, Any] = {}  # what stood in the object itself, rather than its class
        self._loss: Tensor | None = None  # of the micro-batches since the last step, float64
        self.optimizer: FusedAdamW | None = None

    def attach(self) -> None:
        """Put the methods of this object in place of the Trainer's of the same names."""
        for name in REPLACED:
            if name in vars(self._trainer):
                self._replaced[name] = vars(self._trainer)[name]
            setattr(self._trainer, name, getattr(self, name))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make a FusedAdamW by the Trainer's own method; one of an earlier training is dropped, its schedule over."""
        trainer = self._trainer
        if self._schedule is not None and trainer.optimizer is not self.optimizer:
            trainer.optimizer = None
        if trainer.optimizer is None:
            trainer.optimizer_cls_and_kwargs = (FusedAdamW, self._keywords())
        created = self._own("create_optimizer")(*args, **kwargs)
        optimizer = getattr(created, "optimizer", created)  # without accelerate's wrapper
        checks.check_created(trainer, optimizer)
        if optimizer is not self.optimizer:
            self.optimizer = optimizer
            optimizer.register_step_pre_hook(self._before_step)
        return created

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Return a scheduler that shows the LR, or without a schedule the Trainer's own; the last before training."""
        self._loss = None  # a training that broke off within a window may have left some
        self._settle()
        trainer = self._trainer
        if self._schedule is None:
            return self._own("create_scheduler")(num_training_steps, optimizer)
        if getattr(trainer.lr_scheduler, "optimizer", None) is not self.optimizer:
            trainer.lr_scheduler = ShownLR(self._fused)
        return trainer.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the Trainer's own method, and add up what it returns: the share of this micro-batch in the loss of the
        step, whatever divided it, the number of micro-batches or `num_items_in_batch`.
        """
        loss: Tensor = self._own("training_step")(*args, **kwargs)
        share = loss.detach().to(torch.float64)
        self._loss = share if self._loss is None else self._loss + share
        return loss

    def _before_step(self, optimizer: FusedAdamW, args: Any, kwargs: Any) -> None:
        """Observe the sum of this rank, with the same weight on every rank: gradients are averaged alike, too."""
        if isinstance(self._trainer.lr_scheduler, ShownLR):
            self._trainer.lr_scheduler.before_step()
        if self._loss is not None:
            optimizer.observe(self._loss)
            self._loss = None

    def _clip_grad_norm(self, model: Any) -> Any:
        """Return the norm, read only when it is logged, and clip nothing; without a limit, do as the Trainer does."""
        if self._fused.max_grad_norm is None:
            return self._own("_clip_grad_norm")(model)
        return self._norm()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of the step; if the optimizer reads no gradients for one, the Trainer computes it."""
        if grad_norm is None and self._fused._control.reads_gradients:
            return self._norm()
        return self._own("_get_grad_norm")(model, grad_norm=grad_norm)

    def _norm(self) -> Tensor:
        """Return the 0-d tensor to which the step writes the norm. The Trainer reads it after the step, and after
        waiting for the loss that it logs, so that the norm is of this step.
        """
        if self._trainer.is_fsdp_enabled:  # FSDP's scaler learns of other ranks' non-finite gradients by this alone
            self._trainer.accelerator.unscale_gradients()
        return self._fused._control.slot("grad_norm")

    def _settle(self) -> None:
        """Move the control to the parameters' device, as the first step would, since `_norm` shows its memory. FSDP2
        moves parameters after the optimizer was made.
        """
        fused = self._fused
        if fused._control.device != fused._device():
            fused._control.to(fused._device())
            fused._restart()

    def _keywords(self) -> dict[str, Any]:
        """Return arguments for FusedAdamW, read anew: a hyper-parameter search changes them between trainings."""
        args = self._trainer.args
        limit = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
        found: dict[str, Any] = dict(lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
        found |= dict(eps=args.adam_epsilon, weight_decay=args.weight_decay, max_grad_norm=limit)
        return found | self._options | {"schedule": self._resolved()}

    def _resolved(self) -> Schedule | None:
        schedule: Schedule | None = self._schedule
        if checks.is_function(schedule):
            schedule = self._schedule(checks.steps_of(self._trainer))
            checks.check_returned(schedule)
        checks.warn_of_lost(self._trainer, schedule)
        return schedule

    @property
    def _fused(self) -> FusedAdamW:
        assert self.optimizer is not None, "the Trainer creates the optimizer first"
        return self.optimizer

    def _own(self, name: str) -> Callable[..., Any]:
        """Return the Trainer's method as it was before `attach`."""
        trainer = self._trainer
        return self._replaced[name] if name in self._replaced else partial(getattr(type(trainer), name), trainer)


#: The methods of a Trainer that `Driver.attach` replaces by its own.
REPLACED = ("create_optimizer", "create_scheduler", "training_step", "_clip_grad_norm", "_get_grad_norm")
