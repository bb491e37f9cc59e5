"""Checks that the ranks hold the same: once where a mistake would go unnoticed, and on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from greedylr_fused.control import BLOCKS, RINGS, SLOT, SLOTS, Control
from greedylr_fused.tensors import is_flattened, layout, local, sharded_dims


def check_parameters(params: Sequence[Tensor], group: Any) -> None:
    """Refuse parameters whose norm would be wrong: plain ones that differ between ranks, as in ZeroRedundancyOptimizer;
    parts of DTensors that should be the same on some ranks and differ, as between stages of a pipeline; FSDP1's parts
    that several ranks hold alike, as under HYBRID_SHARD. Compares shapes, dtypes and two elements of each; waits for
    the device and all ranks.

    Raises:
        RuntimeError: on every rank alike.
    """
    flat = [param for param in params if is_flattened(param)]
    placed = [param for param in params if layout(param) is not None]
    apart = {id(param) for param in (*flat, *placed)}
    plain = [param for param in params if id(param) not in apart]
    own = (_fingerprint(plain), _fingerprint(placed), repr(list(map(_place, placed))), _fingerprint(flat, vary=True))
    found = gathered(own, group)
    prints = [plain for plain, *_ in found]
    _refuse_others("plain parameters", prints, ["replicas"] * len(found))
    _refuse_others("parts of DTensors", [placed for _, placed, *_ in found], [place for _, _, place, _ in found])
    held = [(part, rank) for rank, (*_, part) in enumerate(found) if part]  # ranks with nothing do not count as alike
    different = dict(reversed(held))
    if len(different) < len(held):
        first, second = next([different[part], rank] for part, rank in held if different[part] != rank)
        raise RuntimeError(
            f"FusedAdamW: expected another part of FSDP1's parameters on each of the {len(found)} ranks of the process "
            f"group, got the same part on the ranks {first} and {second}; pass partitions={len(different)}, the number "
            "of ranks that hold one copy together"
        )


def _refuse_others(what: str, prints: Sequence[str], places: Sequence[str]) -> None:
    """Refuse ranks at the same place that do not hold the same."""
    first: dict[str, int] = {}
    for rank, (own, place) in enumerate(zip(prints, places, strict=True)):
        if own != prints[first.setdefault(place, rank)]:
            raise RuntimeError(
                f"FusedAdamW: expected replicas in the process group, got {what} on rank {rank} that "
                f"differ from those on rank {first[place]}; pass partitions=, how many ranks hold different ones: "
                "world size under ZeRO, stages of a pipeline, 1 for replicas"
            )


def _place(param: Tensor) -> list[tuple[int, int]]:
    """Return which part of a parameter lies on this rank: its coordinates in the dimensions that divide it."""
    spec = layout(param)
    coordinate = spec.mesh.get_coordinate()
    return [(dim, coordinate[dim]) for dim in sharded_dims(spec)]


def _fingerprint(params: Sequence[Tensor], vary: bool = False) -> str:
    """Return a hash; empty if the parameters have no elements, or should `vary` and do not, as where all are zero."""
    parts = [local(param.detach()).resolve_conj() for param in params]
    held = [torch.view_as_real(p) if p.is_complex() else p for p in parts if p.numel()]
    if not held:
        return ""
    values = torch.stack([p[(end,) * p.dim()].to(torch.float64) for p in held for end in (0, -1)]).tolist()
    if vary and len(set(values)) == 1:
        return ""
    text = repr([(tuple(p.shape), str(p.dtype)) for p in parts]) + repr(list(map(float.hex, values)))
    return hashlib.sha256(text.encode()).hexdigest()


def gathered(value: Any, group: Any) -> list[Any]:
    """Return what every rank of the group passed here, in rank order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def check_control(control: Control, group: Any) -> None:
    """Check that every rank holds the same control vector, bit for bit; waits for all of them.

    Raises:
        RuntimeError: on every rank alike; names a slot, the ranks and their values.
    """
    everyone = gathered(_decided(control, control.needs_loss), group)
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


def _decided(control: Control, needs_loss: bool) -> dict[str, str]:
    """Return the bits of all slots by name, without those of a rank's own: how often its host wrote, and its share
    until that is added up, or for good where the loss decides nothing.
    """
    names = [*SLOTS, *(f"{block} of group {group}" for block in BLOCKS for group in range(control.n_groups))]
    names += [f"window[{i}]" for i in range(control.window_size)]
    names += [f"{name} of spikes[{i}]" for name, *_ in RINGS for i in range(control.spike_window)]
    names += [f"tuner[{i}]" for i in range(len(control.tuned.start))]
    own = {
        *SLOTS[SLOT["loss_sum"] : SLOT["param_moved_sum"] + 1],
        "writes",
        *(() if needs_loss else ("loss", "smoothed")),
    }
    values = control.vector.tolist()
    return {name: value.hex() for name, value in zip(names, values, strict=True) if name not in own}


def _ranks_with(value: Any, values: Sequence[Any]) -> str:
    ranks = [str(rank) for rank, other in enumerate(values) if other == value]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"
