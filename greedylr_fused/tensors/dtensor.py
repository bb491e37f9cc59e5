"""The part of a distributed tensor on this rank, and how it is divided: DTensor, and the flat parameters of FSDP1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where the elements of a rank's part lie in the whole parameter: element i is there at
    `first + i // run * stride + i % run`, both in row-major order.

    Attributes:
        number: of the parameter in `state_dict()`.
        first: index of the part's first element.
        run: elements of the part that are neighbours in the whole, too; `stride`: from one run to the next.
    """

    number: int = 0
    first: int = 0
    run: int = 1
    stride: int = 1


def place_of(param: Tensor, number: int) -> Place:
    """Return the place of this rank's part. Of a parameter divided otherwise than along its first two dimensions it
    means nothing, but is the same on every run.
    """
    spec = spec_of(param)
    numel = max(local(param).numel(), 1)
    if spec is None or not sharded_dims(spec):
        return Place(number, 0, numel, numel)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(param.shape, spec.mesh, spec.placements)
    row = max(math.prod(param.shape[1:]), 1)
    inner = max(math.prod(param.shape[2:]), 1)
    first = offset[0] * row + (offset[1] * inner if len(offset) > 1 else 0)
    run = math.prod(shape[1:])
    return Place(number, first, numel, numel) if run == row or not run else Place(number, first, run, row)


def is_flattened(param: Tensor) -> bool:
    """Return whether a parameter is a plain tensor in which FSDP1 holds this rank's part."""
    return getattr(param, "_fsdp_flattened", False)


def layout(param: Tensor) -> Any:
    """Return mesh and placements of a DTensor, or of the part that DistributedDataParallel(device_mesh=...) put in its
    place with a mark; None for any other parameter.
    """
    spec = spec_of(param)
    return getattr(param, "_st_info", None) if spec is None else spec


def sharded_dims(spec: Any) -> list[int]:
    """Return the dimensions of the mesh over which a parameter is divided."""
    return [dim for dim, placement in enumerate(spec.placements) if not placement.is_replicate()]


def spec_of(tensor: Tensor) -> Any:
    """Return mesh and placements of a DTensor (FSDP2, tensor parallel), None for any other tensor."""
    return getattr(tensor, "_spec", None) if hasattr(tensor, "device_mesh") else None


def local(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that lies on this rank, with its memory; any other tensor itself."""
    found: Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def arrived(tensor: Tensor) -> Tensor:
    """Wait for the result of a functional collective (by the stream, on a GPU), which has no memory before, and return
    it; any other tensor itself.
    """
    wait = getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


def alike(tensor: Any, param: Tensor) -> bool:
    """Return whether both have the same mesh and placements, or none."""
    spec, wanted = spec_of(tensor), spec_of(param)
    if spec is None or wanted is None:
        return spec is wanted
    return bool(spec.mesh == wanted.mesh and spec.placements == wanted.placements)


def local_part(what: str, tensor: Any, param: Tensor) -> Tensor:
    """Return the part of a DTensor that belongs to the part of its parameter on this rank.

    Raises:
        RuntimeError: it is distributed in another way than the parameter.
    """
    if not alike(tensor, param):
        spec, wanted = spec_of(tensor), spec_of(param)
        got = "that is no DTensor" if spec is None else f"with placements {spec.placements} on {spec.mesh}"
        raise RuntimeError(
            f"FusedAdamW: expected {what} with the placements of its DTensor parameter, {wanted.placements} on "
            f"{wanted.mesh}, got one {got}; redistribute it, as in param.grad = "
            "param.grad.redistribute(param.device_mesh, param.placements)"
        )
    return local(tensor)


def local_gradient(grad: Any, param: Tensor) -> Tensor:
    """Return the part of a gradient that belongs to the part of its parameter on this rank. A gradient with other
    placements on the same mesh (sequence parallelism leaves it to be added up) is redistributed by a collective.

    Raises:
        RuntimeError: the gradient is no DTensor, or on another mesh.
    """
    spec, wanted = spec_of(grad), spec_of(param)
    if spec is not None and spec.mesh == wanted.mesh and spec.placements != wanted.placements:
        grad = grad.redistribute(wanted.mesh, wanted.placements)
    return arrived(local_part("a gradient", grad, param))
