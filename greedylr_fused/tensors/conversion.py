"""States converted from one storage to another: moments between floats and 8 bits, remainders between 16 and 8.

Each works on the part of a tensor on this rank alone, since no group of 64 crosses parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from greedylr_fused.tensors import eight_bit, storage
from greedylr_fused.tensors.dtensor import local, spec_of
from greedylr_fused.tensors.formats import EIGHT_BIT
from greedylr_fused.warning import warn


def decoded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moments of 8-bit codes and scales, float32, divided as these are."""
    q = state["exp_avg_q"]
    flat = (local(state[name]).contiguous().reshape(-1) for name in EIGHT_BIT)
    moments = zip(("exp_avg", "exp_avg_sq"), eight_bit.decode_moments(*flat), strict=True)
    return {name: storage.like_param(moment.view(local(q).shape), q, q.shape) for name, moment in moments}


def encoded(state: Mapping[str, Tensor], param: Tensor) -> dict[str, Tensor] | None:
    """Return codes, rounded to nearest, and scales of moments that are divided as their parameter; None if this rank
    has some that are not finite in float32, or no squares.
    """
    moments = [local(state[name]) for name in ("exp_avg", "exp_avg_sq")]
    m, v = (moment.to(torch.float32).contiguous().reshape(-1) for moment in moments)
    *codes, scale, scale_sq = eight_bit.encode_moments(m, v, None)
    if not eight_bit.finite_groups(scale, scale_sq).all():
        return None
    shapes = (*(moment.shape for moment in moments), *[storage.scale_shape(moments[0])] * 2)
    whole = (param.shape, param.shape, *[storage.scale_shape(param)] * 2)
    return {
        name: storage.like_param(part.view(shape), param, of)
        for name, part, shape, of in zip(EIGHT_BIT, (*codes, scale, scale_sq), shapes, whole, strict=True)
    }


def as_remainder(remainder: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a remainder in another dtype, beside a parameter that stays as it is: from int8 exactly, from int16 the
    nearest, but at most 127, for 128 would be the next parameter's -128.
    """
    if remainder.dtype == dtype:
        return remainder
    here = local(remainder).to(torch.int32)
    part = here << 8 if dtype == torch.int16 else ((here + 0x80) >> 8).clamp(max=127)
    return storage.like_param(part.to(dtype).contiguous(), remainder, remainder.shape)


def in_bytes(remainder: Tensor) -> Tensor:
    """Return a remainder as a checkpoint has it, in the same memory: one of int16 as uint8, with its two bytes in a
    last dimension, since neither gloo nor NCCL sends 16-bit integers, and distributed checkpointing gathers by them.
    """
    if remainder.dtype != torch.int16:
        return remainder
    here = local(remainder).unsqueeze(-1).view(torch.uint8)
    strides = (*(2 * stride for stride in remainder.stride()), 1)
    return storage.like_param(here, remainder, torch.Size((*remainder.shape, 2)), strides)


def from_bytes(remainder: Tensor) -> Tensor:
    """Return the int16 remainder of what `in_bytes` returned, in memory of its own; any other itself."""
    if remainder.dtype != torch.uint8:
        return remainder
    here = local(remainder).clone(memory_format=torch.contiguous_format).view(torch.int16).squeeze(-1)
    return storage.like_param(here, remainder, remainder.shape[:-1])


def follow(state: dict[str, Tensor], param: Tensor, own: storage.Storage) -> None:
    """Bring the remainder of a state into the form for its parameter: after `model.to(dtype)`, since only a bfloat16
    one has any, and after a loader that put in what a checkpoint has.
    """
    if param.dtype != torch.bfloat16:
        if state.pop("remainder", None) is not None:
            warn(
                "master_weights: expected parameters that stay bfloat16, got some converted to another dtype, without "
                "the remainders of their masters; to keep those, take master_weights() before, and copy them in after"
            )
    elif "remainder" in state:
        state["remainder"] = from_bytes(state["remainder"])
    elif own.remainder is not None:
        state["remainder"] = storage.zeros(param, own.remainder)


def divided(whole: Tensor, param: Tensor) -> Tensor:
    """Return a whole tensor divided as its parameter, in memory of its own, without communication; any other itself."""
    spec = spec_of(param)
    if spec is None or spec_of(whole) is not None:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, spec.mesh, spec.placements, src_data_rank=None).clone()
