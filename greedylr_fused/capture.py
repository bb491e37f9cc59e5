"""Whether a CUDA graph is being captured, which repeats what is enqueued, and must not wait."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Whether the current stream of this kind of device is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
