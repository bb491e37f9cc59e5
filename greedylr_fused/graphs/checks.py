"""Checks of what a captured step is made of, and of what it is called with."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor

from greedylr_fused.device_schedule import DeviceSchedule
from greedylr_fused.graphs.frozen import ANEW
from greedylr_fused.graphs.stepped import Stepped
from greedylr_fused.optimizer import FusedAdamW

#: Kinds of device on which graphs can be captured.
_DEVICES = ("cuda",)


def check_arguments(body: Any, optimizer: Any, warmup: Any) -> None:
    """Check the arguments of a CapturedStep.

    Raises:
        TypeError, ValueError, RuntimeError: see `CapturedStep`.
    """
    if not isinstance(optimizer, (FusedAdamW, DeviceSchedule)):
        raise TypeError(
            f"CapturedStep: expected a FusedAdamW or a DeviceSchedule as optimizer, got a {type(optimizer).__name__}; "
            "write CapturedStep(body, optimizer), or CapturedStep(body, schedule) for what a schedule drives"
        )
    if not callable(body):
        raise TypeError(
            f"CapturedStep: expected a function of the batch as body, got a {type(body).__name__}; write one that "
            "computes the loss, calls backward() and optimizer.step(loss=loss)"
        )
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
        raise ValueError(f"CapturedStep: expected an integer >= 1 as warmup, got {warmup!r}; leave it out for 3")
    devices = sorted(map(str, Stepped(optimizer).devices))
    if any(device.partition(":")[0] not in _DEVICES for device in devices):
        raise RuntimeError(
            "CapturedStep: expected parameters on a GPU, since a CUDA graph is one of GPU launches, got ones on "
            f"{', '.join(devices)}; call the body itself, or move the model first and then construct optimizer and "
            "CapturedStep"
        )
    if len(devices) > 1:
        raise RuntimeError(
            f"CapturedStep: expected parameters on one GPU, got ones on {', '.join(devices)}, and no graph has "
            "several; call the body itself"
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
            f"changes as a tensor, or {ANEW}"
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


def check_nothing_observed(stepped: Stepped) -> None:
    """Refuse losses observed outside of the graph: it would mix them into its own.

    Raises:
        RuntimeError: names their number.
    """
    if observed := stepped.observed:
        raise RuntimeError(
            f"CapturedStep: expected losses observed in the body, which the graph repeats, got {observed} observed "
            "outside of it; move opt.observe(loss) into the body"
        )
