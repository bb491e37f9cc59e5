"""Checks of what a captured step is made of, and of what must not have changed when it is replayed."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.tensors import NEEDS_COPY, REBUILD, local

#: Kinds of device on which graphs can be captured.
_DEVICES = ("cuda",)
_HYPER = ("betas", "eps", "weight_decay", "maximize", "amsgrad")
_ANEW = "call reset(): the next call is an eager step, and the one after it captures anew"


def check_arguments(body: Any, optimizer: Any, warmup: Any) -> None:
    """Check the arguments of a CapturedStep.

    Raises:
        TypeError, ValueError, RuntimeError: see `CapturedStep`.
    """
    if not isinstance(optimizer, FusedAdamW):
        raise TypeError(
            f"CapturedStep: expected a FusedAdamW as optimizer, got a {type(optimizer).__name__}; write "
            "CapturedStep(body, optimizer)"
        )
    if not callable(body):
        raise TypeError(
            f"CapturedStep: expected a function of the batch as body, got a {type(body).__name__}; write one that "
            "computes the loss, calls backward() and optimizer.step(loss=loss)"
        )
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
        raise ValueError(f"CapturedStep: expected an integer >= 1 as warmup, got {warmup!r}; leave it out for 3")
    if (device := optimizer._device()).type not in _DEVICES:
        raise RuntimeError(
            "CapturedStep: expected parameters on a GPU, since a CUDA graph is one of GPU launches, got ones on "
            f"{device}; call the body itself, or move the model first and then construct optimizer and CapturedStep"
        )


def check_input(place: int, own: Any, given: Any) -> None:
    """Refuse an input that the graph cannot take in place of the first call's.

    Raises:
        ValueError: another shape, dtype or constant.
    """
    got = own_is = ""
    if isinstance(own, Tensor) and isinstance(given, Tensor):
        if (own.shape, own.dtype) != (given.shape, given.dtype):
            got, own_is = (f"a {t.dtype} tensor of shape {tuple(t.shape)}" for t in (given, own))
    elif type(own) is not type(given) or not (own is given or own == given or (own != own and given != given)):
        got, own_is = repr(given), repr(own)
    if got:
        raise ValueError(
            f"CapturedStep: expected {own_is} as input number {place}, as at the first call, whose shapes and "
            f"constants the graph has, got {got}; leave an incomplete last batch out (drop_last=True), pass what "
            f"changes as a tensor, or {_ANEW}"
        )


def check_constant(leaf: Any) -> None:
    """Refuse an input that is neither a tensor nor a constant that can be compared.

    Raises:
        TypeError: an array of numpy.
    """
    if hasattr(leaf, "__array__") and not isinstance(leaf, (Tensor, Real)):
        raise TypeError(
            f"CapturedStep: expected tensors and constants as inputs, got a {type(leaf).__name__}; pass "
            "torch.from_numpy(x)"
        )


def check_nothing_observed(optimizer: FusedAdamW) -> None:
    """Refuse losses observed outside of the graph: it would mix them into its own.

    Raises:
        RuntimeError: names their number.
    """
    if observed := optimizer._control.observed:
        raise RuntimeError(
            f"CapturedStep: expected losses observed in the body, which the graph repeats, got {observed} observed "
            "outside of it; move opt.observe(loss) into the body"
        )


class Frozen:
    """State of an optimizer at the capture, which its graph has frozen.

    Args:
        optimizer: the one stepped in the capture that has just ended.

    Attributes:
        params_with_grad: the parameters that the graph changes.
    """

    def __init__(self, optimizer: FusedAdamW) -> None:
        self._optimizer, self._table = optimizer, optimizer._engine.table
        self._backend = optimizer._engine.backend  # kept, as the table is: the graph reads their memory
        self.params_with_grad: list[Tensor] = [] if self._table is None else list(self._table.params_with_grad)
        self._scaled = optimizer._control.scaled
        self._hyper = [{name: group[name] for name in _HYPER} for group in optimizer.param_groups]
        self._look()
        self._row = None if self._table is None else self._table.row.clone()
        self._grads = self._addresses()

    def check(self) -> None:
        """Refuse a replay that would not do what an eager step would.

        Raises:
            RuntimeError: names what was changed.
        """
        optimizer, what = self._optimizer, None
        for index, (group, then) in enumerate(zip(optimizer.param_groups, self._hyper, strict=False)):
            for name in _HYPER:
                if group[name] != then[name]:
                    what = f"{name} of parameter group {index} changed from {then[name]!r} to {group[name]!r}"
        found = self._look()
        if optimizer._engine.table is not self._table or found & REBUILD:
            what = (
                "parameters, their states or the groups were replaced (by load_state_dict(), add_param_group(), "
                "keep_copies(), or moving the model), or a step had gradients of other parameters"
            )
        if optimizer._control.scaled != self._scaled:
            what = "a step was made with a gradient scaler, whose scale is on the device until a step without one"
        if what is not None:
            raise RuntimeError(f"CapturedStep: since the capture {what}, of which the graph knows nothing; {_ANEW}")
        if found & NEEDS_COPY or not torch.equal(self._table.row, self._row):  # type: ignore[union-attr, arg-type]
            self._check_gradients()

    def _check_gradients(self) -> None:
        for param, before, now in zip(self._optimizer._params(), self._grads, self._addresses(), strict=True):
            if now not in (0, before):
                raise RuntimeError(
                    f"CapturedStep: expected the gradient of a parameter of shape {tuple(param.shape)} in the memory "
                    "it had at the capture, where the graph computes it, got it in other memory; call opt.zero_grad() "
                    f"if it is done with, or {_ANEW}"
                )

    def _look(self) -> int:
        return self._optimizer._engine.look(self._optimizer.param_groups, self._optimizer.state)

    def _addresses(self) -> list[int]:
        grads = [param.grad for param in self._optimizer._params()]
        return [0 if grad is None else local(grad).data_ptr() for grad in grads]
