"""Whether the ranks hold the same: checked once where a mistake would go unnoticed, and on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from greedylr_fused.control import SLOT, SLOTS, Control

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW


def check_same_parameters(params: Sequence[Tensor], group: Any) -> None:
    """Refuse plain parameters of which each rank holds others, as those of ZeroRedundancyOptimizer: their norm would be
    taken for that of replicas. Compares shapes, dtypes and the first elements; waits for the device and all ranks.

    Raises:
        RuntimeError: on every rank alike.
    """
    first = [torch.view_as_real(p) if p.is_complex() else p for p in (p.detach() for p in params if p.numel())]
    values = [p[(0,) * p.dim()].to(torch.float64) for p in first]
    numbers = torch.stack(values).tolist() if values else []
    text = repr([(tuple(p.shape), str(p.dtype)) for p in params]) + repr(list(map(float.hex, numbers)))
    prints = gathered(hashlib.sha256(text.encode()).hexdigest(), group)
    if len(set(prints)) > 1:
        others = [rank for rank, found in enumerate(prints) if found != prints[0]]
        raise RuntimeError(
            f"FusedAdamW: got plain parameters that are others on rank {others[0]} of the process group than on rank 0 "
            "(shapes, dtypes or values), allowed are replicas, of which one counts; pass partitions=, the number of "
            "parts that all parameters are divided into over the ranks: the world size for ZeroRedundancyOptimizer, "
            "1 if they are replicas all the same"
        )


def gathered(value: Any, group: Any) -> list[Any]:
    """What every rank of the group passed here, in rank order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def check_ranks_agree(self: FusedAdamW) -> None:
    """Check that every rank holds the same control vector (schedule, counters, LRs, norm), bit for bit: for tests, and
    for a run that behaves as if they did not. Every rank must call it; it waits for all of them.

    Raises:
        RuntimeError: on every rank alike; names a slot, the ranks and their values.
    """
    ranks, control = self._engine.ranks, self._control
    if ranks.moved:
        ranks.find([param for group in self.param_groups for param in group["params"]])
    if ranks.size == 1:
        return
    everyone = gathered(_decided(control), ranks.group)
    for name in dict.fromkeys(name for found in everyone for name in found):
        values = [found.get(name) for found in everyone]
        if len(set(values)) > 1:
            shown = ", ".join(
                f"{'missing' if value is None else float.fromhex(value)!r} on {_ranks_with(value, values)}"
                for value in dict.fromkeys(values)
            )
            raise RuntimeError(
                f"FusedAdamW.check_ranks_agree(): {name} differs: {shown}; ranks that step together must be given the "
                "same options and checkpoint, and call step() the same number of times"
            )


def _decided(control: Control) -> dict[str, str]:
    """The bits of all slots, by name, but of those that hold a rank's own share until they are added up."""
    blocks = ("lr", "initial_lr", "min_lr", "max_lr")
    names = [*SLOTS, *(f"{block} of group {group}" for block in blocks for group in range(control.n_groups))]
    names += [f"window[{i}]" for i in range(control.window_size)]
    own = range(SLOT["loss_sum"], SLOT["found_inf"] + 1)
    values = control.vector.tolist()
    return {name: value.hex() for i, (name, value) in enumerate(zip(names, values, strict=True)) if i not in own}


def _ranks_with(value: Any, values: Sequence[Any]) -> str:
    ranks = [str(rank) for rank, other in enumerate(values) if other == value]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"
