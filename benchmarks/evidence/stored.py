"""What trains in a format: the model that stores its parameters so, and its optimizer, ours or another's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.evidence.formats import Format
from greedylr_fused import FusedAdamW

Groups = list[dict[str, object]]


class Stepped(Protocol):
    """What a run needs of an optimizer."""

    def step(self, *, loss: Any) -> Any: ...

    def zero_grad(self) -> None: ...

    def read_lr(self) -> Sequence[float]: ...


def model_of(form: Format, model: nn.Module) -> nn.Module:
    """The model with its parameters stored so."""
    return model if form.param == torch.float32 else Stored(model, form.param)


def optimizer_of(form: Format, groups: Groups, lr: float, options: dict[str, Any]) -> Stepped:
    """Ours, or the peer.

    Raises:
        ImportError: the peer is not installed.
    """
    if form.peer is None:
        return FusedAdamW(groups, lr=lr, **options, **form.options)
    module, name = form.peer
    return Peer(getattr(importlib.import_module(module), name), groups, lr, **options)


class Stored(nn.Module):
    """A model whose parameters are stored in 16 bits and used in float32: what differs is what is stored.

    Args:
        model: its parameters are rounded.
        dtype: to this; their gradients are, too.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        for param in model.parameters():
            param.data = param.data.to(dtype)
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        wide = {name: param.float() for name, param in self.model.named_parameters()}
        return torch.func.functional_call(self.model, wide, inputs)  # type: ignore[no-any-return]


class Peer:
    """Another's AdamW, with clipping and a step schedule around it.

    Args:
        make: the optimizer's class.
        groups: parameter groups.
        lr: peak.
        schedule: whose LR depends on the step alone.
        max_grad_norm: to clip to, or None.
        options: betas and eps.
    """

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        groups: Groups,
        lr: float,
        schedule: Any,
        max_grad_norm: float | None,
        **options: Any,
    ) -> None:
        self._optimizer = make(groups, lr=lr, **options)
        self._lrs, self._steps, self._clip = [lr * ratio for ratio in schedule.curve()], 0, max_grad_norm
        self._set()

    def _set(self) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.read_lr()[0])
            else:
                group["lr"] = self.read_lr()[0]

    def read_lr(self) -> Sequence[float]:
        """Of the next step; after the last one that of the last."""
        return [self._lrs[min(self._steps, len(self._lrs) - 1)]]

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def step(self, *, loss: Any) -> None:
        """The loss decides nothing."""
        if self._clip is not None:
            params = [param for group in self._optimizer.param_groups for param in group["params"]]
            nn.utils.clip_grad_norm_(params, self._clip)
        self._optimizer.step()
        self._steps += 1
        self._set()
