"""Two modes of PyTorch: a CUDA graph is captured, which repeats what is enqueued, and must not wait; or inference mode,
whose tensors nobody may write to afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_inference(function: F) -> F:
    """Make ordinary tensors of those that a function makes, whatever mode it is called in; grad mode stays as it is."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with_grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def capturing(device: torch.device) -> bool:
    """Return whether the current stream of this kind of device is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def keep(captures: list[Any], device: torch.device, *values: Any) -> None:
    """Add the memory of tensors among these losses and weights to what a graph being captured reads at each replay."""
    if capturing(device):
        captures += [value.detach() for value in values if isinstance(value, torch.Tensor)]
