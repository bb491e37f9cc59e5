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


def check_parameters(replicas: Sequence[Tensor], parts: Sequence[Tensor], group: Any) -> None:
    """Refuse parameters whose norm would be taken for another: plain ones of which each rank holds others, as those of
    ZeroRedundancyOptimizer, and FSDP1's of which several hold the same, as under HYBRID_SHARD. Compares shapes, dtypes
    and two elements of each; waits for the device and all ranks.

    Raises:
        RuntimeError: on every rank alike.
    """
    found = gathered((_fingerprint(replicas), _fingerprint(parts)), group)
    prints = [own for own, _ in found]
    if len(set(prints)) > 1:
        other = next(rank for rank, own in enumerate(prints) if own != prints[0])
        raise RuntimeError(
            f"FusedAdamW: got plain parameters that are others on rank {other} of the process group than on rank 0 "
            "(shapes, dtypes or values), allowed are replicas, of which one counts; pass partitions=, the number of "
            "parts that all parameters are divided into over the ranks: the world size for ZeroRedundancyOptimizer, "
            "1 if they are replicas all the same"
        )
    held = [(part, rank) for rank, (_, part) in enumerate(found) if part]  # those with nothing are not alike
    different = dict(reversed(held))
    if len(different) < len(held):
        first, second = next([different[part], rank] for part, rank in held if different[part] != rank)
        raise RuntimeError(
            f"FusedAdamW: got the same part of FSDP1's parameters on the ranks {first} and {second} of the process "
            f"group, allowed is another part on each of its {len(found)} ranks; pass partitions={len(different)}, the "
            "number of ranks that hold one copy together: those of a shard group under HYBRID_SHARD, 1 under NO_SHARD"
        )


def _fingerprint(params: Sequence[Tensor]) -> str:
    """Empty if the parameters have no elements."""
    held = [torch.view_as_real(p) if p.is_complex() else p for p in (p.detach() for p in params if p.numel())]
    if not held:
        return ""
    values = torch.stack([p[(end,) * p.dim()].to(torch.float64) for p in held for end in (0, -1)]).tolist()
    text = repr([(tuple(p.shape), str(p.dtype)) for p in params]) + repr(list(map(float.hex, values)))
    return hashlib.sha256(text.encode()).hexdigest()


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
