"""Detection of CUDA graph capture: a graph repeats what is enqueued, and capture must not wait."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Return whether the current stream of this kind of device is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
