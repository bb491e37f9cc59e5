"""Checks of the optimizer's options: what was got, what is allowed, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_STATE_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16)


NO_LOSS = (
    "FusedAdamW.step() got no loss, but its schedule GreedyLR decides from the loss; give it in one of three ways: "
    "step(loss=loss), or a closure that returns it: step(closure), or observe(loss) per micro-batch and then step()"
)


def one_loss(loss: Any, result: Any, *, observed: bool, driven: bool) -> Any:
    """The loss of this step, from the argument or what the closure returned; None if neither has one.

    Args:
        loss: the argument of step().
        result: what the closure returned.
        observed: whether observe() was called since the last step.
        driven: whether a schedule needs the loss; if not, a closure may return anything.

    Raises:
        ValueError: it was given more than once.
    """
    if not driven and not (isinstance(result, (int, float)) or (isinstance(result, Tensor) and result.numel() == 1)):
        result = None
    given = [value for value in (loss, result) if value is not None]
    if len(given) + observed > 1:
        raise ValueError(
            "FusedAdamW.step() got the loss more than once, allowed is once: step(loss=loss), the closure's return "
            "value, or observe() before step(); drop all but one"
        )
    for value in given:
        check_loss(value)
    return given[0] if given else None


def check_group(group: dict[str, Any], index: int) -> None:
    """Check the AdamW options of one parameter group; betas given as tensors become numbers.

    Raises:
        ValueError, TypeError: an option is out of range or of the wrong type; names the group.
    """

    def refuse(name: str, allowed: str, remedy: str) -> None:
        raise ValueError(f"{name} of parameter group {index}: got {group[name]!r}, allowed is {allowed}; {remedy}")

    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        refuse("lr", "a number or a tensor of one element", "pass one LR per parameter group")
    if not 0.0 <= float(group["lr"]) < math.inf:
        refuse("lr", "a finite number >= 0", "write lr=3e-4")
    betas = group["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        refuse("betas", "a pair of numbers in [0, 1)", "write betas=(0.9, 0.999)")
    group["betas"] = betas = (float(betas[0]), float(betas[1]))
    if not all(0.0 <= beta < 1.0 for beta in betas):
        refuse("betas", "a pair of numbers in [0, 1)", "write betas=(0.9, 0.999)")
    for name in ("eps", "weight_decay"):
        if not 0.0 <= group[name] < math.inf:
            refuse(name, "a finite number >= 0", f"write {name}=0 to leave it out")
    if group.get("differentiable"):
        refuse("differentiable", "False", "differentiate through torch.optim.AdamW(differentiable=True) instead")


def check_extras(max_grad_norm: float | None, skip_nonfinite: bool | None, state_dtype: torch.dtype | None) -> None:
    """Check the options that torch's AdamW does not have.

    Raises:
        ValueError: out of range.
    """
    if max_grad_norm is not None and not 0.0 < max_grad_norm < math.inf:
        raise ValueError(
            f"max_grad_norm: got {max_grad_norm!r}, allowed is None (no clipping) or a finite number > 0; write 1.0"
        )
    if skip_nonfinite not in (None, True, False):
        raise ValueError(f"skip_nonfinite: got {skip_nonfinite!r}, allowed is True, False or None; leave it out")
    if state_dtype not in _STATE_DTYPES:
        raise ValueError(
            f"state_dtype: got {state_dtype!r}, allowed is None (the parameter's dtype) or a floating-point dtype of "
            "16, 32 or 64 bits; write state_dtype=torch.float32"
        )


def check_loss(loss: Any) -> None:
    """Check one observed loss.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: a tensor of more than one element.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"loss: got a tensor of shape {tuple(loss.shape)}, allowed is one element; use loss.mean()"
            )
    elif isinstance(loss, bool) or not isinstance(loss, (int, float)):
        raise TypeError(f"loss: got {type(loss).__name__}, allowed is a number or a tensor of one element")


def check_weight(weight: Any) -> None:
    """Check the weight of an observed loss (a tensor is not read).

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: negative or not finite, or a tensor of more than one element.
    """
    if isinstance(weight, Tensor):
        if weight.numel() != 1:
            raise ValueError(
                f"weight: got a tensor of shape {tuple(weight.shape)}, allowed is one element; use weight.sum()"
            )
    elif isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight: got {type(weight).__name__}, allowed is a number or a tensor of one element")
    elif not 0.0 <= weight < math.inf:
        raise ValueError(f"weight: got {weight!r}, allowed is a finite number >= 0; pass e.g. the number of tokens")


def check_device(params: Sequence[Tensor]) -> torch.device | None:
    """The one device of all parameters; None if there are none.

    Raises:
        RuntimeError: several devices.
        TypeError: a parameter is a DTensor.
    """
    for param in params:
        if hasattr(param, "device_mesh"):
            raise TypeError(
                "FusedAdamW got a DTensor parameter (FSDP2, tensor parallel), allowed are plain tensors in this "
                "version; use torch.optim.AdamW(fused=True) for sharded models, or DDP"
            )
    devices = {param.device for param in params}
    if len(devices) > 1:
        raise RuntimeError(
            f"FusedAdamW got parameters on {', '.join(sorted(map(str, devices)))}, allowed is one device per "
            "optimizer; construct one FusedAdamW for the parameters of each device"
        )
    return next(iter(devices), None)
