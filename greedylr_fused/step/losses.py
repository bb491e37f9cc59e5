"""The loss given to a step: its forms, their checks, and the error when it is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.control import Control
from greedylr_fused.step.options import check_not_traced, is_number
from greedylr_fused.warning import warn

#: Each is called with the closure whose result is to be the loss of a step, and raises if that is not the whole loss.
closure_checks: list[Callable[[Any], None]] = []


def check_loss(loss: Any) -> None:
    """Check one observed loss.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: a tensor of more than one element.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"loss: expected a tensor of one element, got one of shape {tuple(loss.shape)}; use loss.mean()"
            )
        if loss.is_complex():
            raise TypeError(f"loss: expected a real number, got a {loss.dtype} tensor; use loss.abs() or loss.real")
    elif not is_number(loss):
        raise TypeError(
            f"loss: expected a number or a tensor of one element, got {type(loss).__name__}; pass the loss itself"
        )


def check_observed(loss: Any, weight: Any) -> Any:
    """Check the arguments of observe(), and return the weight, a float or a tensor.

    Raises:
        TypeError, ValueError: not one number, or a negative weight.
        RuntimeError: called where operations are only followed.
    """
    check_not_traced("observe()")
    check_loss(loss)
    check_weight(weight)
    return weight if isinstance(weight, Tensor) else float(weight)


def check_weight(weight: Any) -> None:
    """Check the weight of an observed loss (a tensor is not read).

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: negative or not finite, or a tensor of more than one element.
    """
    if isinstance(weight, Tensor):
        if weight.numel() != 1:
            raise ValueError(
                f"weight: expected a tensor of one element, got one of shape {tuple(weight.shape)}; use weight.sum()"
            )
        if weight.is_complex():
            raise TypeError(f"weight: expected a real number, got a {weight.dtype} tensor; use weight.abs()")
    elif not is_number(weight):
        raise TypeError(
            f"weight: expected a number or a tensor of one element, got {type(weight).__name__}; pass e.g. the number "
            "of tokens"
        )
    elif not 0.0 <= weight < math.inf:
        raise ValueError(f"weight: expected a finite number >= 0, got {weight!r}; pass e.g. the number of tokens")


def of_step(closure: Any, loss: Any, control_now: Callable[[], Control]) -> tuple[Any, Any]:
    """Return what the closure returned, and the loss of this step: None if there is none, or if it was observed.

    Args:
        closure: argument of step().
        loss: argument of step().
        control_now: returns what holds the losses observed so far; a closure that adds groups has it replaced.

    Raises:
        TypeError, ValueError, RuntimeError: no closure; a loss that is not one number, given twice, or of a part alone.
    """
    if closure is None and loss is None:  # after a backward pass each line of Python waits for memory
        return None, None
    before = control_now().observed
    try:
        result = None if closure is None else call(closure)
    except BaseException:
        control_now().discard_observed()  # the next attempt observes anew
        raise
    control = control_now()
    returned = result if control.observed == before else None  # otherwise the closure has observed it
    if returned is not None and control.needs_loss:
        for check in closure_checks:
            check(closure)
    given = one_loss(loss, returned, observed=control.observed > 0, needs_loss=control.needs_loss)
    warn_of_number(given, control.device)
    return result, given


def one_loss(loss: Any, result: Any, *, observed: bool, needs_loss: bool) -> Any:
    """Return the loss of this step, from the argument or what the closure returned; None if neither has one.

    Args:
        loss: the argument of step().
        result: what the closure returned.
        observed: whether observe() was called since the last step.
        needs_loss: whether a schedule needs the loss; if not, a closure may return anything.

    Raises:
        ValueError: the loss was given more than once.
    """
    real = isinstance(result, Tensor) and result.numel() == 1 and not result.is_complex()
    if not needs_loss and not real and not is_number(result):
        result = None
    given = [value for value in (loss, result) if value is not None]
    if len(given) + observed > 1:
        raise ValueError(
            "FusedAdamW.step(): expected the loss once, got it more than once; drop all but one of step(loss=loss), "
            "the closure's return value and observe() before step(), or call discard_observed() where a step was given "
            "up"
        )
    for value in given:
        check_loss(value)
    return given[0] if given else None


def check_given(loss: Any, control: Control) -> None:
    """Refuse a step without a loss if the schedule, or the skipping of spikes, needs one.

    Raises:
        RuntimeError: names the ways to give one.
    """
    if loss is not None or control.observed or not control.needs_loss:
        return
    decider = f"its schedule {type(control.schedule).__name__}" if control.is_loss_driven else "its SkipSpikes"
    raise RuntimeError(
        f"FusedAdamW.step(): expected a loss, from which {decider} decides, got none; give it in one of three ways: "
        "step(loss=loss), step(closure), or observe(loss) and then step(); for frameworks, and losses of evaluations "
        "alone, see docs/faq.md"
    )


def call(closure: Any) -> Any:
    """Call the closure with gradients enabled, and return its result.

    Raises:
        TypeError: not callable, such as a loss in the closure's place.
    """
    if not callable(closure):
        raise TypeError(
            f"FusedAdamW.step(): expected as closure a function that returns the loss, got a {type(closure).__name__}; "
            "write step(loss=loss)"
        )
    with torch.enable_grad():
        return closure()


def warn_of_number(loss: Any, device: torch.device) -> None:
    """Warn of a loss that is a number on an asynchronous device: the host has waited for it."""
    if device.type != "cpu" and is_number(loss):
        warn(
            f"FusedAdamW.step(): expected a tensor as loss for parameters on {device}, got a number: loss.item() and "
            "float(loss) wait for the device at each step; pass the tensor itself, step(loss=loss)"
        )
