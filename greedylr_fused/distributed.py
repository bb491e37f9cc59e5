"""What the ranks must agree on, and what of a distributed tensor lies on this one."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(pending: Tensor) -> None:
    """Add up `(sum of weight * loss, sum of weights)` over all ranks in place, so that every rank decides from the same
    bits. One small all-reduce on the default process group; nothing with a single process.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(pending)


def spec_of(tensor: Tensor) -> Any:
    """Mesh and placements of a DTensor (FSDP2, tensor parallel), None of any other tensor."""
    return getattr(tensor, "_spec", None) if hasattr(tensor, "device_mesh") else None


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that lies on this rank, with its memory; another tensor itself."""
    found: Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def arrived(tensor: Tensor) -> Tensor:
    """What a functional collective returns has no memory until it is waited for (by the stream, on a GPU); then that.
    Another tensor itself.
    """
    wait = getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


def local_part(what: str, tensor: Any, param: Tensor) -> Tensor:
    """The part of a DTensor that belongs to the part of its parameter on this rank.

    Raises:
        RuntimeError: it is distributed in another way than the parameter.
    """
    spec, wanted = spec_of(tensor), spec_of(param)
    if spec is None or (spec.mesh, spec.placements) != (wanted.mesh, wanted.placements):
        got = "that is no DTensor" if spec is None else f"with placements {spec.placements} on {spec.mesh}"
        raise RuntimeError(
            f"FusedAdamW: got {what} {got} for a DTensor parameter, allowed are the placements of the parameter: "
            f"{wanted.placements} on {wanted.mesh}; redistribute it, as in "
            "param.grad = param.grad.redistribute(param.device_mesh, param.placements)"
        )
    return local(tensor)
