"""FusedAdamW in the Trainer of torchtitan 0.3: `use_fused_adamw(config)` in a function of a config registry.

    forward_backward_step   observes the loss of the micro-batch, weighted by its tokens
    clip_grad_norm_         nothing: training.max_norm is folded into the update; the norm is read when it is logged
    optimizers.step         updates, and decides the next LR (torchtitan_optimizers.py)
    lr_schedulers           show it (torchtitan_rates.py)

What the trainer does, in the order of its calls. None waits for the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
from torchtitan.distributed import utils as dist_utils
from torchtitan.trainer import Trainer

from greedylr_fused.control import Schedule
from greedylr_fused.integrations.torchtitan_optimizers import NAME, FoldedLimit, FusedOptimizersContainer
from greedylr_fused.integrations.torchtitan_rates import ShownLRsContainer
from greedylr_fused.schedules import GreedyLR, StepSchedule
from greedylr_fused.step import options as adamw_options
from greedylr_fused.warning import warn

_GREEDY = GreedyLR()


class ObservesLoss:
    """Base class before a Trainer class of torchtitan: gives each loss to the FusedAdamW, and leaves clipping to it.

    `class MyFusedTrainer(ObservesLoss, MyTrainer)`. Its config has a `FusedOptimizersContainer.Config` as optimizer,
    and a `ShownLRsContainer.Config` as lr_scheduler. Losses of validation are not observed.

    Args:
        config: of the Trainer. In the options of "FusedAdamW", `schedule` may be a function of the number of steps.

    Raises:
        TypeError: another optimizer or lr_scheduler in the config.
        ValueError: `max_grad_norm` in the options, beside `training.max_norm`.
    """

    optimizers: FusedOptimizersContainer

    def __init__(self, config: Any) -> None:
        super().__init__(_settled(config))  # type: ignore[call-arg]  # the Trainer's

    def forward_backward_step(
        self, *, input_dict: Any, labels: Tensor | list[Tensor], global_valid_tokens: Tensor
    ) -> Tensor:
        """Run the Trainer's own method, and observe what it returns."""
        given = dict(input_dict=input_dict, labels=labels, global_valid_tokens=global_valid_tokens)
        loss: Tensor = super().forward_backward_step(**given)  # type: ignore[misc]
        dims: Any = self.parallel_dims  # type: ignore[attr-defined]
        if dims.pp_enabled and not self.pp_has_last_stage:  # type: ignore[attr-defined]
            self.optimizers.observe(0.0, weight=0.0)
        else:
            own = labels if isinstance(labels, list) else [labels]
            self.optimizers.observe(*_mean_and_tokens(loss, own, global_valid_tokens, dims.cp))
        return loss

    def train_step(self, data_iterator: Any) -> None:
        """Run the Trainer's own method, in which torchtitan does not clip if the FusedAdamW does."""
        with _clipping_left_to(self.optimizers):
            super().train_step(data_iterator)  # type: ignore[misc]


class FusedAdamWTrainer(ObservesLoss, Trainer):  # type: ignore[misc]  # Any, where torchtitan is not installed
    """torchtitan's Trainer with FusedAdamW; its config is what `use_fused_adamw` returns."""

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):  # type: ignore[misc]
        """Options as torchtitan has them."""


def use_fused_adamw(
    config: Trainer.Config, *, schedule: Schedule | Callable[[int], Schedule] | None = _GREEDY, **options: Any
) -> FusedAdamWTrainer.Config:
    """Return a training config like this one, whose "AdamW" groups are trained by FusedAdamW.

    Learning rate (where it starts, or its peak), betas, eps and weight decay are those of the groups; other optimizers,
    such as "DistMuon", stay as they are, with torchtitan's LR curve. The loss that decides is torchtitan's: the mean
    over all valid tokens of the step, on all ranks. `training.max_norm` is folded into the update if FusedAdamW trains
    every parameter; otherwise torchtitan clips, as before.

    Args:
        config: of `torchtitan.trainer.Trainer` itself; for a subclass see `ObservesLoss`.
        schedule: as in FusedAdamW, or a function of the number of training steps that returns it, such as
            `lambda steps: GreedyLR(base=Cosine(steps))`. With None, torchtitan's LR curve decides. Default: GreedyLR().
        options: other options of FusedAdamW: skip_nonfinite, skip_spikes, backend, state_dtype, process_group,
            partitions (default: the pipeline's degree).

    Raises:
        TypeError: not a config of that Trainer, or of its own containers; not a schedule.
        ValueError: no group is trained by "AdamW".
    """
    if not _is_function(schedule):
        adamw_options.check_schedule(schedule)
    kinds = (type(config), Trainer.Config), (type(getattr(config, "optimizer", None)), OptimizersContainer.Config)
    for found, wanted in kinds:
        if found is not wanted:
            raise TypeError(
                f"use_fused_adamw(): expected torchtitan's own {wanted.__qualname__}, got a {found.__qualname__}; for "
                "a Trainer of your own write class Mine(ObservesLoss, MyTrainer), with FusedOptimizersContainer.Config "
                "and ShownLRsContainer.Config"
            )
    names = [group.optimizer_name for group in config.optimizer.param_groups]
    if "AdamW" not in names:
        raise ValueError(
            f'use_fused_adamw(): expected groups with optimizer_name="AdamW", got {names}; write optimizer='
            "default_adamw(lr=...) in the config"
        )
    by_name = dict(config.optimizer.optimizer_factory_kwargs_by_name)
    by_name[NAME] = by_name.pop("AdamW", {}) | options | {"schedule": schedule}
    groups = [
        dataclasses.replace(group, optimizer_name=NAME) if group.optimizer_name == "AdamW" else group
        for group in config.optimizer.param_groups
    ]
    fields = _fields(config.optimizer) | {"param_groups": groups, "optimizer_factory_kwargs_by_name": by_name}
    replaced = {
        "optimizer": FusedOptimizersContainer.Config(**fields),
        "lr_scheduler": ShownLRsContainer.Config(**_fields(config.lr_scheduler)),
    }
    return FusedAdamWTrainer.Config(**_fields(config) | replaced)


def _mean_and_tokens(
    loss: Tensor, labels: Sequence[Tensor], global_valid_tokens: Tensor, cp: int
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a micro-batch on this rank, and its number of tokens, both 0-d float64 on the device.

    Weighted by these, the mean over micro-batches and ranks is the sum of torchtitan's losses over micro-batches and
    the ranks of its "loss" mesh, which is how it computes its own global mean.

    Args:
        loss: torchtitan's: the sum over the tokens of this rank, divided by those of all micro-batches and ranks.
        labels: integers [batch, sequence] of the micro-batch, before context parallelism splits them.
        global_valid_tokens: integer, 0-d: the tokens of all micro-batches and ranks.
        cp: the ranks that share one sequence.
    """
    own = loss.to_local() if isinstance(loss, DTensor) else loss
    valid = [(part != IGNORE_INDEX).sum().to(own.device) for part in labels]
    tokens = sum(valid[1:], start=valid[0]).double() / cp
    # A micro-batch without a valid token has the loss 0, and counts for nothing.
    return own.detach().double().reshape(()) * global_valid_tokens / tokens.clamp(min=1.0 / cp), tokens


def _settled(config: Any) -> Any:
    """Return the config with what is known now that the command line was read: limit, stages, number of steps."""
    for part, wanted in (("optimizer", FusedOptimizersContainer), ("lr_scheduler", ShownLRsContainer)):
        if not isinstance(found := getattr(config, part), wanted.Config):
            raise TypeError(
                f"config.{part}: expected a {wanted.Config.__qualname__} for a trainer with FusedAdamW, got a "
                f"{type(found).__qualname__}; write config = use_fused_adamw(config)"
            )
    rates, limit, by_name = (
        config.lr_scheduler,
        config.training.max_norm,
        config.optimizer.optimizer_factory_kwargs_by_name,
    )
    options = dict(by_name.get(NAME, {}))
    if _is_function(options.get("schedule")):
        steps = config.training.steps if rates.total_steps is None else rates.total_steps
        options["schedule"] = options["schedule"](steps)
        adamw_options.check_schedule(options["schedule"])
    _warn_of_lost(options.get("schedule"), rates)
    if config.parallelism.pipeline_parallel_degree > 1:
        options.setdefault("partitions", config.parallelism.pipeline_parallel_degree)
    alone = {group.optimizer_name for group in config.optimizer.param_groups} == {NAME}
    if alone and limit < math.inf and "max_grad_norm" not in options:  # which the container refuses
        options["max_grad_norm"] = FoldedLimit(limit)
    optimizer = dataclasses.replace(config.optimizer, optimizer_factory_kwargs_by_name=by_name | {NAME: options})
    return dataclasses.replace(config, optimizer=optimizer)


def _is_function(schedule: Any) -> bool:
    """Return whether it is a function that returns a schedule; a class is none."""
    return callable(schedule) and not isinstance(schedule, type)


def _warn_of_lost(schedule: Any, rates: Any) -> None:
    """Warn of options of torchtitan's curve that a schedule without one does not follow."""
    if schedule is None or isinstance(getattr(schedule, "base", schedule), StepSchedule):
        return
    defaults = _fields(LRSchedulersContainer.Config())
    if asked := {name: value for name, value in _fields(rates).items() if value != defaults[name]}:
        warn(
            f"config.lr_scheduler: {', '.join(f'{name}={value!r}' for name, value in asked.items())} not used by "
            f"FusedAdamW, since {type(schedule).__name__} decides the LR; write schedule=lambda steps: "
            "GreedyLR(base=WSD(steps, ...))"
        )


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}


@contextlib.contextmanager
def _clipping_left_to(optimizers: FusedOptimizersContainer) -> Iterator[None]:
    """Let torchtitan's function for clipping return the norm of the update, and do nothing. Its trainer calls it by its
    module, between two of its methods, and reads the norm after the step.
    """
    norm = optimizers.folded_norm()
    if norm is None:
        yield
        return
    own = dist_utils.clip_grad_norm_
    dist_utils.clip_grad_norm_ = lambda *_, **__: norm
    try:
        yield
    finally:
        dist_utils.clip_grad_norm_ = own
