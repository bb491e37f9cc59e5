"""torchtitan's container of optimizers with "FusedAdamW" beside its own, and what a checkpoint of it adds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchtitan.components.optimizer import OptimizersContainer

from greedylr_fused.control import SAVED_BLOCKS
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.step import options as adamw_options

#: In a `ParamGroupConfig`, and of its arguments in `optimizer_factory_kwargs_by_name`.
NAME = "FusedAdamW"
#: Options of FusedAdamW that stand in a parameter group; any other would be kept there by torch, unread.
_OF_GROUP = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "corrected_weight_decay"}
_OF_GROUP |= {"params", "fused", "foreach", "capturable", "differentiable"}
_OF_OPTIMIZER = [name for name in inspect.signature(FusedAdamW).parameters if name not in _OF_GROUP]
#: The key of a checkpoint with the numbers that all groups share, and the ends of those with the numbers of one group,
#: and with the last losses and norms of `skip_spikes`.
_SHARED, _OWN, _SPIKES = "greedylr_fused.control", ".control", ".spikes"


class FoldedLimit(float):
    """A clipping limit given by whoever sees to it that nothing else clips: `FusedAdamWTrainer` does."""


class FusedOptimizersContainer(OptimizersContainer):  # type: ignore[misc]  # Any, where torchtitan is not installed
    """torchtitan's container of optimizers, which also knows the `optimizer_name` "FusedAdamW".

    The parts of a model that one rank holds, such as several stages of a pipeline, are trained by one FusedAdamW, with
    one clipping and one schedule; other optimizers are one for each part, as before. The state dict is flat, as
    torchtitan's; what all groups of a schedule share is in it once, as a text.

    Args:
        config: `param_groups` with options of groups (lr, betas, eps, weight_decay, amsgrad) in `optimizer_kwargs`, and
            all others of FusedAdamW in `optimizer_factory_kwargs_by_name={"FusedAdamW": {...}}`.
        model_parts: the modules that this rank holds.

    Raises:
        TypeError: an option of the whole optimizer in `optimizer_kwargs`.
        ValueError: `max_grad_norm`, where torchtitan clips too.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):  # type: ignore[misc]
        """Options as torchtitan has them; "fused_opt_states_bf16" means `state_dtype=torch.bfloat16`."""

    optimizers: list[Any]
    fused: FusedAdamW | None

    def __init__(self, config: Config, *, model_parts: list[nn.Module]) -> None:
        self.fused = None
        self._bf16_states = config.implementation == "fused_opt_states_bf16"
        super().__init__(config, model_parts=model_parts)
        self.optimizers = list(dict.fromkeys(self.optimizers))  # ours is made for the first part, and grows
        for optimizer in self.optimizers:
            if isinstance(optimizer, FusedAdamW):
                optimizer.metrics()  # follows the groups that were added

    def observe(self, loss: Any, weight: Any = 1.0) -> None:
        """Give the loss of one micro-batch to the FusedAdamW, if that needs the loss.

        Args:
            loss: as in `FusedAdamW.observe`: the mean over `weight` tokens.
            weight: number or tensor of one element, >= 0.
        """
        if self.fused is not None and adamw_options.needs_loss(self.fused.schedule, self.fused.skip_spikes):
            self.fused.observe(loss, weight)

    def folded_norm(self) -> Tensor | None:
        """Return the 0-d float64 tensor to which each step writes the norm; None if the FusedAdamW does not clip."""
        if self.fused is None or self.fused.max_grad_norm is None:
            return None
        return self.fused._control.slot("grad_norm")

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's flat state. Waits for the device."""
        flat: dict[str, Any] = super().state_dict()
        for key, control in [(key, value) for key, value in flat.items() if _is_control(key, value)]:
            flat[key] = json.dumps({name: value for name, value in control.items() if name in SAVED_BLOCKS})
            if _SHARED not in flat:
                flat[_SHARED] = json.dumps({name: v for name, v in control.items() if name not in SAVED_BLOCKS})
        return flat | {key: json.dumps(value) for key, value in flat.items() if _is_control(key, value, end=_SPIKES)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, on any number of ranks and parts."""
        shared = json.loads(state_dict.get(_SHARED, "{}"))
        own = {key: shared | json.loads(text) for key, text in state_dict.items() if _is_control(key, text, str)}
        own |= {key: json.loads(text) for key, text in state_dict.items() if _is_control(key, text, str, end=_SPIKES)}
        super().load_state_dict(state_dict | own)

    def _resolve_optimizer_factory(self, name: str) -> Callable[..., Any]:
        """Return a constructor: ours, or one of torchtitan's own table."""
        factory: Callable[..., Any] = super()._resolve_optimizer_factory
        return self._grown if name == NAME else factory(name)

    def _grown(self, groups: Sequence[dict[str, Any]], **options: Any) -> FusedAdamW:
        """Return the FusedAdamW with these groups, of one part of the model, added."""
        for group in groups:
            if misplaced := [name for name in _OF_OPTIMIZER if name in group]:
                raise TypeError(
                    f"optimizer_kwargs of FusedAdamW: expected options of a group, got {', '.join(misplaced)}, of the "
                    'whole optimizer; write optimizer_factory_kwargs_by_name={"FusedAdamW": {...}}'
                )
            for name in ("fused", "foreach"):  # it is always both
                group.pop(name, None)
        limit = options.get("max_grad_norm")
        if limit is not None and not isinstance(limit, FoldedLimit):
            raise ValueError(
                f"FusedAdamW in torchtitan: expected one clipping, got max_grad_norm={limit} beside training.max_norm, "
                "by which torchtitan clips before; give the limit as training.max_norm alone: FusedAdamWTrainer folds "
                "it into the update"
            )
        if self._bf16_states:
            options = {"state_dtype": torch.bfloat16} | options
        if self.fused is None:
            self.fused = FusedAdamW(groups, **options)
        else:
            for group in groups:
                self.fused.add_param_group(group)
        return self.fused


def _is_control(key: str, value: Any, kind: type = dict, end: str = _OWN) -> bool:
    return key.endswith(end) and key.startswith("param_groups.") and isinstance(value, kind)
