"""Checks of the states in a checkpoint, in whatever storage, all made before anything is changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.checkpoint.checks import as_float, check_count, pairs, refuse
from greedylr_fused.tensors import (
    DTYPES,
    EIGHT_BIT,
    MOMENTS,
    STATE_DTYPES,
    alike,
    has_memory,
    local,
    spec_of,
    storage,
    tuning,
)

_DAMAGED = "it is damaged: load an earlier checkpoint"


def check_states(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse states of another optimizer or another model, which torch's loader would let in.

    Raises:
        TypeError, ValueError: names the key.
    """
    known = {name for name, _ in pairs(loaded, groups)}
    for name in loaded["state"]:
        if isinstance(name, int) and name not in known:  # other names belong to no parameter, as in torch
            raise ValueError(
                f"checkpoint: state[{name!r}]: expected one of the parameters of param_groups, "
                f"{sorted(map(str, known))[:5]}..., got none of them; load an earlier checkpoint"
            )
    group_of = {name: group for group in loaded["param_groups"] for name in group["params"]}
    for index, param in pairs(loaded, groups):
        where, state = f"state[{index!r}]", loaded["state"].get(index, {})
        if not isinstance(state, Mapping):
            refuse(where, state, "a dictionary", "load an earlier checkpoint", TypeError)
        if state:
            _check_state(where, state, param, group_of[index])


def has_both(state: Mapping[str, Any]) -> bool:
    """Return whether a state has moments in 8 bits and as floats: distributed checkpointing, given a whole dictionary,
    adds what it finds there to what the live optimizer has.
    """
    return not state.keys().isdisjoint(EIGHT_BIT) and not state.keys().isdisjoint(MOMENTS)


def _check_state(where: str, state: Mapping[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
    both = has_both(state)
    eight_bit = EIGHT_BIT if not state.keys().isdisjoint(EIGHT_BIT) else ()
    floats = () if eight_bit and not both else MOMENTS if group.get("amsgrad") else MOMENTS[:2]
    for name in ("step", *floats, *eight_bit):
        if name not in state:
            raise ValueError(
                f"checkpoint: {where}: expected a state of AdamW, got one with the keys {sorted(map(str, state))}, "
                f'without "{name}"; load a checkpoint that FusedAdamW or torch.optim.AdamW wrote'
            )
    _check_step(f'{where}["step"]', state["step"])
    if both and _from_rank_0():
        refuse(
            f'{where}["exp_avg"]',
            "others on rank 0",
            "moments stored as in this optimizer",
            "leave broadcast_from_rank0 out and load the file on every rank, which converts them",
        )
    for name in (*MOMENTS, *eight_bit):
        if name in state:
            _check_tensor(f'{where}["{name}"]', name, state[name], param, may_be_whole=both)
    if eight_bit:
        _check_scales(where, state)
    if tuning.OFFSET in state:
        _check_tensor(f'{where}["{tuning.OFFSET}"]', tuning.OFFSET, state[tuning.OFFSET], param)
        place = f'{where}["{tuning.WRITTEN_AT}"]'
        at = as_float(place, state.get(tuning.WRITTEN_AT))
        if not 0 <= at < torch.inf:
            refuse(place, at, "a finite number >= 0", _DAMAGED)
    if "remainder" in state and param.dtype == torch.bfloat16:
        _check_tensor(f'{where}["remainder"]', "remainder", state["remainder"], param)


def _from_rank_0() -> bool:
    """Return whether torch.distributed.checkpoint loads what one rank alone has read: what others do not have by that
    name it does not give them, and says nothing.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict" and "info" in frame.f_locals:
            return bool(getattr(frame.f_locals["info"], "broadcast_from_rank0", False))
        frame = frame.f_back
    return False


def _check_step(where: str, step: Any) -> None:
    if isinstance(step, Tensor):
        real = step.is_floating_point() or step.dtype in (torch.int32, torch.int64)
        if step.numel() != 1 or not real or step.is_meta:
            refuse(where, step, "one number", _DAMAGED)
        step = step.item()
    check_count(where, step)


def _check_tensor(where: str, name: str, value: Any, param: Tensor, *, may_be_whole: bool = False) -> None:
    """Check a tensor of a state.

    Args:
        where: its place in the checkpoint.
        name: its key there.
        value: from the checkpoint.
        param: its parameter.
        may_be_whole: whether it need not be divided as a DTensor parameter is.
    """
    if not isinstance(value, Tensor):
        otherwise = (
            "the file stores it otherwise: load that into an optimizer like its own, whose state_dict() load here"
        )
        refuse(where, value, "a tensor", otherwise if value == {} else _DAMAGED, TypeError)
    if name in EIGHT_BIT and value.shape == param.shape and not storage.in_groups(param.shape):
        refuse(where, value.dtype, f"floats in a tensor of shape {tuple(param.shape)}", _DAMAGED)
    in_bytes = name == "remainder" and value.dtype == torch.uint8
    shape = storage.scale_shape(param) if name.endswith("_scale") else param.shape
    shape = torch.Size((*shape, 2)) if in_bytes else shape
    if value.shape != shape:
        raise ValueError(
            f"checkpoint: {where}: expected shape {tuple(shape)} like its parameter, got {tuple(value.shape)}; "
            "load the checkpoint of the same model"
        )
    if name in STATE_DTYPES:
        fits, wanted = in_bytes or value.dtype in STATE_DTYPES[name], " or ".join(map(str, STATE_DTYPES[name]))
    else:
        fits = value.dtype.to_real() in DTYPES and value.is_complex() == param.is_complex()
        wanted = "complex" if param.is_complex() else "16, 32 or 64 bit float"
    if not fits or value.layout is not torch.strided or not has_memory(local(value)):
        raise TypeError(
            f"checkpoint: {where}: expected a dense Tensor of {wanted} numbers for a {param.dtype} parameter, got a "
            f"{type(value).__name__} of {value.dtype} on {value.device}, {value.layout}; dequantize it if it holds "
            "codes, or load the checkpoint of the same model"
        )
    if not alike(value, param) and not (may_be_whole and spec_of(value) is None):
        spec, like = spec_of(value), spec_of(param)
        got = "no DTensor" if spec is None else f"a DTensor with placements {spec.placements} on {spec.mesh}"
        allowed = "a plain tensor" if like is None else f"placements {like.placements} on {like.mesh}"
        raise ValueError(
            f"checkpoint: {where}: expected {allowed} like its parameter, got {got}; load it by "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, with "
            "StateDictOptions(full_state_dict=True) if it is whole"
        )


def _check_scales(where: str, state: Mapping[str, Tensor]) -> None:
    """Refuse scales that no step has written, and ones that do not lie on the rank of their codes."""
    for name in ("exp_avg_scale", "exp_avg_sq_scale"):
        scale, wanted = local(state[name]), storage.scale_shape(local(state["exp_avg_q"]))
        if scale.shape != wanted:
            refuse(f'{where}["{name}"]', tuple(scale.shape), f"a part of shape {tuple(wanted)} here", _DAMAGED)
        bad = scale[~((scale >= 0) & (scale < torch.inf))]
        if bad.numel():
            refuse(f'{where}["{name}"]', float(bad[0]), "finite numbers >= 0", _DAMAGED)
