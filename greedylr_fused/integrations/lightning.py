"""The Trainer of Lightning 2: a callback that gives `FusedAdamW` each loss as `training_step` returned it.

Lightning hands every optimizer a closure that returns the loss, so most runs need nothing from here. But with
`accumulate_grad_batches=N` the closure returns an N-th of the last micro-batch's loss, since the others ran before the
step; and with a loss scale (`precision="16-mixed"`) the closure runs before the step, which is given no loss at all.

`lightning.pytorch` and `pytorch_lightning` are one library under two names, with two classes `Callback`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import Tensor

from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.warning import warn

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[Any, ...]:
    """Return `Callback` of each package that is imported by now; if none is, of the first that can be."""
    reasons = []
    for names in ([name for name in _PACKAGES if name in sys.modules], *([name] for name in _PACKAGES)):
        try:
            if bases := tuple(importlib.import_module(f"{name}.callbacks").Callback for name in names):
                return bases
        except ModuleNotFoundError as error:
            reasons.append(str(error))
    raise ImportError(
        "greedylr_fused.integrations.lightning: expected lightning or pytorch_lightning, version 2, got no Lightning "
        f'({"; ".join(reasons)}); run pip install "lightning>=2,<3"'
    )


class ObserveLoss(*_bases()):  # type: ignore[misc]  # a base that is known when it is imported
    """Callback that gives a fit's one `FusedAdamW` the loss of every micro-batch, if its schedule needs the loss.

    `Trainer(callbacks=[ObserveLoss()])`. The division by `accumulate_grad_batches` and the loss scale are undone on the
    device, in the loss's own dtype, without waiting. The step then uses the mean over its micro-batches. In manual
    optimization every `manual_backward(loss)` counts as one micro-batch, and `step()` is called without a loss. Losses
    of validation are not observed. If `training_step` returns None, the step decides nothing.

    Raises (when the fit starts):
        ValueError: options of the Trainer that would clip twice, not at all, or write the LR a second time; several
            optimizers, so that it is unknown whose loss it is; or a strategy under which this cannot work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizer: FusedAdamW | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look for the optimizer, and refuse what would train wrongly in silence."""
        optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]
        _check_strategy(trainer)
        for optimizer in optimizers:
            if isinstance(optimizer, FusedAdamW):
                _check_clipping(trainer, optimizer)
                _check_schedulers(trainer, optimizer)
        self._optimizer = _driven(trainer, optimizers)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Observe the loss that `training_step` returned, or that `manual_backward` was given."""
        if self._optimizer is not None:
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._optimizer.observe(_whole(loss.detach(), _scaler(trainer), parts))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Let a step pass without a loss if `training_step` returned None: it has no gradients either."""
        ours = self._optimizer
        if ours is not None and pl_module.automatic_optimization and ours._control.observed == 0:
            ours.observe(0.0, weight=0.0)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the optimizer: the next fit has another one."""
        self._optimizer = None


def _whole(loss: Tensor, scaler: Any, parts: int) -> Tensor:
    """Return a loss as it was before Lightning divided it by `parts` and the scaler multiplied it: to the bit if both
    are powers of two, otherwise up to the last bit of the loss's dtype.
    """
    scale = getattr(scaler, "_scale", None)  # the tensor: get_scale() would wait for it. None in a disabled scaler
    if scale is not None:
        loss = loss / scale
    return loss if parts == 1 else loss * parts


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _driven(trainer: Any, optimizers: list[Any]) -> FusedAdamW | None:
    """Return the optimizer that needs the loss; without one, warn and return None."""
    driven = [opt for opt in optimizers if isinstance(opt, FusedAdamW) and opt._control.needs_loss]
    names = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "no optimizer"
    if driven and len(optimizers) > 1:
        raise ValueError(
            "ObserveLoss: expected one FusedAdamW alone, since a backward pass does not tell whose loss it is of, got "
            f"{len(optimizers)} optimizers ({names}); drop the callback and write opt.step(loss=loss) in training_step"
        )
    if not driven and trainer.is_global_zero:
        warn(
            f"ObserveLoss: expected a FusedAdamW that needs the loss, for GreedyLR or SkipSpikes, got {names}, so it "
            "has no effect; drop the callback, or construct FusedAdamW(..., schedule=GreedyLR())"
        )
    return driven[0] if driven else None


def _check_strategy(trainer: Any) -> None:
    """Refuse strategies that step by themselves, or whose ranks would not agree on the loss scale."""
    name = type(trainer.strategy).__name__
    if trainer.strategy.handles_gradient_accumulation:
        raise ValueError(
            f"ObserveLoss: expected a single device, DDP, FSDP or ModelParallelStrategy, got the strategy {name}, "
            'which accumulates, scales and steps by itself, on parameters of its own; write strategy="ddp" or "fsdp"'
        )
    if type(_scaler(trainer)).__name__ == "ShardedGradScaler":
        raise ValueError(
            f"ObserveLoss: expected a precision without a loss scale under the strategy {name}, whose ranks would come "
            'to different ones (each unscales its own part), got precision="16-mixed"; write precision="bf16-mixed"'
        )


def _check_clipping(trainer: Any, optimizer: FusedAdamW) -> None:
    """Refuse to clip twice, or under a loss scale, which FusedAdamW divides out only after Lightning has clipped."""
    value = trainer.gradient_clip_val
    if not value:
        return
    if optimizer.max_grad_norm is not None:
        raise ValueError(
            f"ObserveLoss: expected one clipping, got Trainer(gradient_clip_val={value}) and "
            f"FusedAdamW(max_grad_norm={optimizer.max_grad_norm}), one after the other; drop gradient_clip_val: "
            "max_grad_norm is folded into the update"
        )
    if _scaler(trainer) is not None:
        raise ValueError(
            "ObserveLoss: expected FusedAdamW's own clipping with a loss scale, which it divides out in its step, got "
            f"Trainer(gradient_clip_val={value}), which clips before; drop gradient_clip_val and write FusedAdamW(..., "
            f"max_grad_norm={value})"
        )


def _check_schedulers(trainer: Any, optimizer: FusedAdamW) -> None:
    """Refuse a torch scheduler for an optimizer whose schedule decides the LR."""
    for config in trainer.lr_scheduler_configs:
        if optimizer.schedule is not None and config.scheduler.optimizer is optimizer:
            raise ValueError(
                f"ObserveLoss: expected one alone to decide the LR, got a {type(config.scheduler).__name__} for a "
                f"FusedAdamW whose {type(optimizer.schedule).__name__} also decides it; return the optimizer alone "
                "from configure_optimizers, or construct it with schedule=None (as for the LR finder)"
            )
