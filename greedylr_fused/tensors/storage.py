"""How the state of a parameter is stored: which moments get 8 bits, which parameters a remainder, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors.dtensor import local, spec_of
from greedylr_fused.tensors.eight_bit import GROUP
from greedylr_fused.tensors.masters import REMAINDERS

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
    stored = {"state_dtype": state_dtype, "master_weights": master_weights}
    return stored | {"state_version": VERSION, "state_group_size": GROUP}


def complete(group: dict[str, Any], state_dtype: torch.dtype | None) -> None:
    """Give a group that asks for 8-bit moments or masters all that says so in a checkpoint.

    Args:
        group: a parameter group.
        state_dtype: as the optimizer was constructed.
    """
    group |= options(group.get("state_dtype", state_dtype), group.get("master_weights"))


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
    grouped = in_groups(param.shape) and lies_in_groups(param)
    moments = torch.int8 if asked is torch.int8 and grouped else torch.float32 if asked in (None, torch.int8) else asked
    if master is None:
        return Storage(moments)
    return Storage(moments, REMAINDERS[master] if grouped else torch.int16)


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


def lies_in_groups(param: Tensor) -> bool:
    """Return whether the groups of a parameter are 64 consecutive elements of memory on every rank."""
    spec = spec_of(param)
    parts = 1 if spec is None else math.prod(size for dim, size in _divided(spec) if dim == 1)
    row = param.numel() // param.shape[0]
    return param.shape[1] % parts == 0 and row % (parts * GROUP) == 0 and _lies_in_rows(param)


def _divided(spec: Any) -> list[tuple[int, int]]:
    """Return (dimension, parts) for each dimension of the mesh over which a parameter is divided; -1 where the parts
    are to be added up.
    """
    divided = [(place, spec.mesh.size(i)) for i, place in enumerate(spec.placements) if not place.is_replicate()]
    return [(getattr(place, "dim", -1), size) for place, size in divided]


def check_kept(param: Tensor, known: Mapping[str, Any], storage: Storage) -> None:
    """Refuse a state that is stored otherwise than options and layout of its parameter say by now.

    Args:
        param: the parameter.
        known: its state; may be empty.
        storage: what `storage_of` returns.

    Raises:
        RuntimeError: names the options.
    """
    coded, floats, remainder = "exp_avg_q" in known, known.get("exp_avg"), known.get("remainder")
    too_narrow = storage.remainder is not None and floats is not None and floats.dtype != torch.float32
    other = False
    if remainder is not None and param.dtype == torch.bfloat16 and remainder.dtype != torch.uint8:
        other = remainder.dtype != storage.remainder  # what else differs, `conversion.follow` brings into form
    if (coded or floats is not None) and coded != (storage.moments is torch.int8) or too_narrow or other:
        kept = [torch.int8 if coded else getattr(floats, "dtype", None), getattr(remainder, "dtype", None)]
        raise RuntimeError(
            f"FusedAdamW: expected moments and remainder in {storage.moments} and {storage.remainder}, as state_dtype, "
            f"master_weights and a row-major layout decide, got {kept[0]} and {kept[1]}; after changing these call "
            "load_state_dict(state_dict()), which converts"
        )


def scale_shape(param: Tensor) -> torch.Size:
    """Return the shape of the scales of a parameter's 8-bit moments: one for each group of each row."""
    return torch.Size((param.shape[0], math.prod(param.shape[1:]) // GROUP))


def new_state(param: Tensor, step: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Return the state of a parameter that was never stepped: zeros with its layout beside the count of steps."""
    if storage.moments is torch.int8:
        codes = {"exp_avg_q": zeros(param, torch.int8), "exp_avg_sq_q": zeros(param, torch.uint8)}
        moments = codes | {f"{name}_scale": _scales(param) for name in ("exp_avg", "exp_avg_sq")}
    else:
        moments = {name: zeros(param, storage.moments) for name in ("exp_avg", "exp_avg_sq")}
    remainder = {} if storage.remainder is None else {"remainder": zeros(param, storage.remainder)}
    return {"step": step, **moments, **remainder}


def zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros of a dtype with the layout of a parameter."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def _scales(param: Tensor) -> Tensor:
    memory = local(param)
    return like_param(torch.zeros(scale_shape(memory), device=memory.device), param, scale_shape(param))


def like_param(here: Tensor, param: Tensor, shape: torch.Size, strides: Sequence[int] | None = None) -> Tensor:
    """Return this rank's part of a tensor that is divided like a parameter, as a DTensor if that is one.

    Args:
        here: the part.
        param: a DTensor, or any other tensor.
        shape: of the whole.
        strides: of the whole; None for row-major ones.
    """
    spec = spec_of(param)
    if spec is None:
        return here
    from torch.distributed.tensor import DTensor

    stride = tuple(strides or torch.empty(shape, device="meta").stride())
    return DTensor.from_local(here, spec.mesh, spec.placements, run_check=False, shape=shape, stride=stride)
