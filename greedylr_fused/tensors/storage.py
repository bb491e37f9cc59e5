"""How the state of a parameter is stored: which moments get 8 bits, which parameters a remainder, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors.dtensor import local, spec_of
from greedylr_fused.tensors.eight_bit import GROUP
from greedylr_fused.tensors.masters import REMAINDERS
from greedylr_fused.warning import warn

#: Parameters of fewer elements keep float32 moments.
SMALLEST = 4096
#: The version of the formats of 8-bit moments and remainders, as it stands in groups.
VERSION = 1
#: Options of a group that say how its state is stored. An optimizer keeps its own.
OPTIONS = ("state_dtype", "master_weights", "state_version", "state_group_size")


@dataclass(frozen=True)
class Storage:
    """How the state of one parameter is stored.

    Attributes:
        moments: their dtype, torch.int8 for codes with scales.
        remainder: the dtype of what a bfloat16 parameter lacks of its float32 master; None for no master.
    """

    moments: torch.dtype
    remainder: torch.dtype | None = None


def options(state_dtype: torch.dtype | None, master_weights: str | None) -> dict[str, Any]:
    """Return what groups hold of these options; nothing unless they ask for 8-bit moments or masters."""
    if state_dtype is not torch.int8 and master_weights is None:
        return {}
    values = (state_dtype, master_weights, VERSION, GROUP)
    return dict(zip(OPTIONS, values, strict=True))


def storage_of(param: Tensor, group: Mapping[str, Any], state_dtype: torch.dtype | None) -> Storage:
    """Return how the state of a parameter is to be stored.

    Args:
        param: whole, a DTensor as it is.
        group: of the parameter; its own "state_dtype" counts before the optimizer's.
        state_dtype: as the optimizer was constructed; None for the dtype of the parameter, or of its master.
    """
    asked = group.get("state_dtype", state_dtype)
    master = group.get("master_weights") if param.dtype == torch.bfloat16 else None
    if param.is_complex() or (asked is None and master is None):
        return Storage(param.dtype)
    ruled = in_groups(param.shape)
    eight_bit = asked is torch.int8 and ruled and _whole_groups_here(param)
    moments = torch.int8 if eight_bit else torch.float32 if asked in (None, torch.int8) else asked
    if master is None:
        return Storage(moments)
    return Storage(moments, REMAINDERS[master] if ruled and _lies_in_rows(param) else torch.int16)


def in_groups(shape: torch.Size) -> bool:
    """Return whether a whole parameter's moments are worth 8 bits and fall into groups that do not cross its rows."""
    return len(shape) >= 2 and shape.numel() >= SMALLEST and (shape.numel() // shape[0]) % GROUP == 0


def _lies_in_rows(param: Tensor) -> bool:
    """Return whether the part on this rank is row-major, as far as elements have to be told apart, and is made of the
    first two dimensions.
    """
    memory, spec = local(param), spec_of(param)
    dims = () if spec is None else tuple(_divided(spec))
    return torch.empty_like(memory, device="meta").is_contiguous() and all(dim in (0, 1) for dim, _ in dims)


def _whole_groups_here(param: Tensor) -> bool:
    """Return whether each rank's part of a row is whole groups; warn if that alone stands against 8 bits."""
    spec = spec_of(param)
    parts = 1 if spec is None else math.prod(size for dim, size in _divided(spec) if dim == 1)
    columns = param.shape[1]
    whole = columns % parts == 0 and (param.numel() // param.shape[0]) % (parts * GROUP) == 0
    if whole and _lies_in_rows(param):
        return True
    warn(
        "state_dtype=torch.int8: expected row-major parameters, divided among ranks along dimension 0, or along "
        f"dimension 1 in multiples of {GROUP} elements, got some that are not; these keep float32 moments: call "
        "contiguous() on them, or divide them so, to save memory"
    )
    return False


def _divided(spec: Any) -> list[tuple[int, int]]:
    """Return (dimension, parts) for each dimension of the mesh over which a parameter is divided; -1 where the parts
    are to be added up.
    """
    divided = [(place, spec.mesh.size(i)) for i, place in enumerate(spec.placements) if not place.is_replicate()]
    return [(getattr(place, "dim", -1), size) for place, size in divided]


def scale_shape(param: Tensor) -> torch.Size:
    """Return the shape of the scales of a parameter's 8-bit moments: one for each group of each row."""
    return torch.Size((param.shape[0], math.prod(param.shape[1:]) // GROUP))


def new_moments(param: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Return zero moments with the layout of their parameter."""
    if storage.moments is not torch.int8:
        return {name: zeros(param, storage.moments) for name in ("exp_avg", "exp_avg_sq")}
    codes = {"exp_avg_q": zeros(param, torch.int8), "exp_avg_sq_q": zeros(param, torch.uint8)}
    return codes | {f"{name}_scale": _scales(param) for name in ("exp_avg", "exp_avg_sq")}


def zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros of a dtype with the layout of a parameter."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def _scales(param: Tensor) -> Tensor:
    memory = local(param)
    here = torch.zeros(scale_shape(memory) if memory.numel() else (0, scale_shape(param)[1]), device=memory.device)
    return like_param(here, param, scale_shape(param))


def like_param(here: Tensor, param: Tensor, shape: torch.Size) -> Tensor:
    """Return this rank's part of a contiguous tensor that is divided like a parameter, as a DTensor if that is one."""
    spec = spec_of(param)
    if spec is None:
        return here
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(here, spec.mesh, spec.placements, run_check=False, shape=shape, stride=strides)
