"""Checks of `use_fused_adamw`, and its warnings of requests in the TrainingArguments that would be lost."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from transformers import Trainer
from transformers import __version__ as transformers_version

from greedylr_fused.control import Schedule
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import LossSchedule, StepSchedule
from greedylr_fused.step import check_schedule
from greedylr_fused.warning import warn

#: Options of FusedAdamW that the TrainingArguments have, and their names there.
_OF_ARGUMENTS = {
    "lr": "learning_rate",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
}
#: Arguments of FusedAdamW that are no options here: they mean nothing, or come from elsewhere.
_NO_OPTIONS = ("params", "schedule", "foreach", "capturable", "differentiable", "fused")
#: Values of `optim` that mean AdamW. Others ask for something else, some in training_step, too.
_ADAMW = ("adamw_torch", "adamw_torch_fused")
#: Our form of each `lr_scheduler_type`, with a place for the warm-up; for others there is `Table`.
_SCHEDULES = {
    "linear": "Linear(steps, {})",
    "cosine": "Cosine(steps, {})",
    "cosine_with_restarts": "CosineRestarts(steps, {})",
    "polynomial": "Polynomial(steps, {})",
    "constant": "Constant({})",
    "constant_with_warmup": "Constant({})",
    "cosine_with_min_lr": "Cosine(steps, min_lr_ratio=0.1, {})",
    "warmup_stable_decay": "WSD(steps, decay_steps=steps // 10, {})",
}


def check_trainer(trainer: Any, methods: Sequence[str]) -> None:
    """Refuse a Trainer that has an optimizer already, or that FusedAdamW cannot train for.

    Args:
        trainer: what `use_fused_adamw` was given.
        methods: names that the Trainer must have.

    Raises:
        TypeError: not a Trainer.
        RuntimeError: says what is wrong with it, and what to do.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"use_fused_adamw(): expected an object of transformers.Trainer or a subclass, got {trainer!r}; pass the "
            "trainer itself, before its train()"
        )
    if missing := [name for name in methods if not hasattr(trainer, name)]:
        raise RuntimeError(
            "use_fused_adamw(): expected a Trainer of transformers 5.17 or later, got one of transformers "
            f"{transformers_version} without {', '.join(missing)}; upgrade transformers"
        )
    if vars(trainer).keys() >= set(methods):
        raise _refused("that was not given to it before", "was", "drop the second call")
    if trainer.optimizer is not None or trainer.lr_scheduler is not None or trainer.optimizer_cls_and_kwargs:
        remedy = "leave out optimizers= and optimizer_cls_and_kwargs=, and call it before train()"
        raise _refused("without optimizer and scheduler", "has an optimizer or a scheduler", remedy)
    if trainer.is_deepspeed_enabled:
        raise _refused("without DeepSpeed", "trains with DeepSpeed, which steps by itself", "use FSDP, or DDP")
    if trainer.is_model_parallel:
        remedy = "load the model on one device, or use FSDP"
        raise _refused("with one device per process", "has its model on several devices", remedy)
    if (optim := _text(trainer.args.optim)) not in _ADAMW:
        allowed = f"with optim={' or '.join(map(repr, _ADAMW))}, which FusedAdamW replaces"
        raise _refused(allowed, f"was told optim={optim!r}", "leave optim out")


def _refused(allowed: str, got: str, remedy: str) -> RuntimeError:
    return RuntimeError(f"use_fused_adamw(): expected a Trainer {allowed}, got one that {got}; {remedy}")


def check_options(options: dict[str, Any]) -> None:
    """Refuse what is no option of FusedAdamW, or is set by the TrainingArguments.

    Raises:
        TypeError: names it.
    """
    known = [name for name in inspect.signature(FusedAdamW).parameters if name not in (*_OF_ARGUMENTS, *_NO_OPTIONS)]
    for name in options:
        if name in _OF_ARGUMENTS:
            raise TypeError(
                f"use_fused_adamw(): expected {name} in the TrainingArguments, got {name}= beside them; write "
                f"{_OF_ARGUMENTS[name]} there"
            )
        if name not in known:
            raise TypeError(f"use_fused_adamw(): expected one of schedule, {', '.join(known)}, got {name}=; correct it")


def is_function(schedule: Any) -> bool:
    """Return whether a schedule is given as a function that returns one; a class is no such function."""
    return callable(schedule) and not isinstance(schedule, (type, LossSchedule, StepSchedule))


def steps_of(trainer: Trainer) -> int:
    """Return the number of training steps, which the Trainer knows once it trains.

    Raises:
        RuntimeError: the Trainer does not know it yet.
    """
    if trainer.state.max_steps <= 0:
        raise RuntimeError(
            "use_fused_adamw(schedule=...): expected a schedule where the optimizer is created before train(), got a "
            "function of the number of training steps, not yet known; leave it to train() to create the optimizer, or "
            "pass a schedule, such as Cosine(10_000)"
        )
    return int(trainer.state.max_steps)


def check_returned(schedule: Any) -> None:
    """Refuse what a function given as `schedule` returned, if it is no schedule.

    Raises:
        TypeError: it is not a schedule.
    """
    if schedule is None:
        raise TypeError(
            "use_fused_adamw(schedule=...): expected a function that returns a schedule, got one that returned None; "
            "let it return one, or pass schedule=None"
        )
    check_schedule(schedule)


def check_created(trainer: Trainer, optimizer: Any) -> None:
    """Refuse a subclass whose `create_optimizer` makes another optimizer.

    Raises:
        RuntimeError: names both.
    """
    if not isinstance(optimizer, FusedAdamW):
        raise RuntimeError(
            f"{type(trainer).__name__}.create_optimizer(): expected the FusedAdamW of self.optimizer_cls_and_kwargs, "
            f"as after use_fused_adamw(), got a {type(optimizer).__name__}; let it call super().create_optimizer(), or "
            "construct that class with those arguments"
        )


def warn_of_lost(trainer: Trainer, schedule: Schedule | None) -> None:
    """Warn of what the TrainingArguments or a subclass ask for, and FusedAdamW with this schedule does not do."""
    args, lost = trainer.args, [] if schedule is None else _not_in(schedule, trainer.args)
    if lost:
        kind, _ = lost[0]
        warn(
            f"{' and '.join(asked for _, asked in lost)} of the TrainingArguments: not used, since "
            f"{type(schedule).__name__} decides the LR; write use_fused_adamw(trainer, schedule=lambda steps: "
            f"{_instead(kind, args.warmup_steps)}), or leave it out there"
        )
    replaced = {"create_scheduler": schedule is not None, "_clip_grad_norm": args.max_grad_norm}
    for name in (name for name, used in replaced.items() if used):
        if getattr(type(trainer), name) is not getattr(Trainer, name):
            warn(f"{type(trainer).__name__}.{name}(): not used, since FusedAdamW does its work; drop it")


def _not_in(schedule: Schedule, args: Any) -> list[tuple[str, str]]:
    """Return the Trainer's scheduler options that a schedule does not follow: (scheduler type, option=value) each."""
    curve = getattr(schedule, "base", schedule)
    kind = _text(args.lr_scheduler_type)
    lost = []
    if kind != "linear" and not isinstance(curve, StepSchedule):  # "linear" is the default
        lost.append((kind, f"lr_scheduler_type={kind!r}"))
    if args.warmup_steps and (not isinstance(curve, StepSchedule) or getattr(curve, "warmup_steps", None) == 0):
        lost.append((kind, f"warmup_steps={args.warmup_steps!r}"))
    return lost


def _instead(kind: str, warmup: float) -> str:
    steps = f"{warmup:g}" if warmup >= 1 else f"math.ceil({warmup:g} * steps)"
    curve = _SCHEDULES.get(kind, "Table(values, {})").format(f"warmup_steps={steps}" if warmup else "")
    return f"GreedyLR(base={curve.replace(', )', ')')})"


def _text(option: Any) -> str:
    """Return an option of the TrainingArguments as text; it may be an enumeration."""
    return str(getattr(option, "value", option))
