"""What a graph has frozen of the optimizers stepped in it, compared before each replay with what is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.graphs.stepped import Stepped
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.tensors import CORRECTED, NEEDS_COPY, REBUILD, local

_HYPER = ("betas", "eps", "weight_decay", "maximize", "amsgrad", CORRECTED)
ANEW = "call reset(): the next call is an eager step, and the one after it captures anew"
_REPLACED = (
    "parameters, their states or the groups were replaced (by load_state_dict(), add_param_group(), "
    "keep_copies(), or moving the model), or a step had gradients of other parameters"
)


class Frozen(Protocol):
    """State of an optimizer at the capture, which its graph has frozen.

    Attributes:
        params_with_grad: the parameters that the graph changes.
    """

    params_with_grad: list[Tensor]

    def check(self) -> None:
        """Refuse a replay that would not do what an eager step would.

        Raises:
            RuntimeError: names what was changed.
        """


def frozen(stepped: Stepped) -> list[Frozen]:
    """Return what the capture that has just ended has frozen."""
    return [*map(FrozenFused, stepped.fused), *map(FrozenOther, stepped.others)]


class FrozenFused:
    """State of a FusedAdamW, compared by the look at its tensors that each of its steps begins with."""

    def __init__(self, optimizer: FusedAdamW) -> None:
        self._optimizer, self._table = optimizer, optimizer._engine.table
        self._backend = optimizer._engine.backend  # kept, as the table is: the graph reads their memory
        self.params_with_grad: list[Tensor] = [] if self._table is None else list(self._table.params_with_grad)
        self._scaled = optimizer._control.scaled
        self._hyper = [{name: group.get(name) for name in _HYPER} for group in optimizer.param_groups]
        self._look()
        self._row = None if self._table is None else self._table.row.clone()
        self._grads = addresses(optimizer)

    def check(self) -> None:
        optimizer = self._optimizer
        what = changed(self._hyper, [{name: group.get(name) for name in _HYPER} for group in optimizer.param_groups])
        found = self._look()
        if optimizer._engine.table is not self._table or found & REBUILD:
            what = _REPLACED
        if optimizer._control.scaled != self._scaled:
            what = "a step was made with a gradient scaler, whose scale is on the device until a step without one"
        refuse(what)
        if found & NEEDS_COPY or not torch.equal(self._table.row, self._row):  # type: ignore[union-attr, arg-type]
            check_gradients(optimizer, self._grads)

    def _look(self) -> int:
        return self._optimizer._engine.look(self._optimizer.param_groups, self._optimizer.state)


class FrozenOther:
    """State of any other optimizer of PyTorch: all options of its groups but the LR, and where its tensors lie."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._options, self._memory, self._grads = self._look()
        self.params_with_grad = [param for param in params_of(optimizer) if param.grad is not None]

    def check(self) -> None:
        options, memory, grads = self._look()
        refuse(_REPLACED if memory != self._memory else changed(self._options, options))
        if grads != self._grads:
            check_gradients(self._optimizer, self._grads)

    def _look(self) -> tuple[list[dict[str, Any]], list[int], list[int]]:
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self._optimizer.param_groups
        ]
        params = params_of(self._optimizer)
        states = [value for param in params for value in self._optimizer.state.get(param, {}).values()]
        memory = [local(tensor).data_ptr() for tensor in (*params, *states) if isinstance(tensor, Tensor)]
        return options, memory, addresses(self._optimizer)


def changed(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str | None:
    """Return which option of a group is another than it was, in words; a tensor must be the same object."""
    found = None
    for index, (before, after) in enumerate(zip(then, now, strict=False)):
        for name, value in before.items():
            new = after.get(name)
            if new is not value and (isinstance(new, Tensor) or isinstance(value, Tensor) or new != value):
                found = f"{name} of parameter group {index} changed from {value!r} to {new!r}"
    return found


def refuse(what: str | None) -> None:
    """Refuse a replay if anything is told to have changed."""
    if what is not None:
        raise RuntimeError(f"CapturedStep: since the capture {what}, of which the graph knows nothing; {ANEW}")


def check_gradients(optimizer: Optimizer, then: Sequence[int]) -> None:
    """Refuse a replay where a gradient lies elsewhere than the graph computes it."""
    for param, before, now in zip(params_of(optimizer), then, addresses(optimizer), strict=True):
        if now not in (0, before):
            raise RuntimeError(
                f"CapturedStep: expected the gradient of a parameter of shape {tuple(param.shape)} in the memory "
                "it had at the capture, where the graph computes it, got it in other memory; call opt.zero_grad() "
                f"if it is done with, or {ANEW}"
            )


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def addresses(optimizer: Optimizer) -> list[int]:
    """Return where the gradient of each parameter lies, 0 for none."""
    grads = [param.grad for param in params_of(optimizer)]
    return [0 if grad is None else local(grad).data_ptr() for grad in grads]
