"""What the ranks must agree on."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(pending: Tensor) -> None:
    """Add up `(sum of weight * loss, sum of weights)` over all ranks in place, so that every rank decides from the same
    bits. One small all-reduce on the default process group; nothing with a single process.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(pending)
