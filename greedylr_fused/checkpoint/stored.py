"""Loaded states as this optimizer stores them: unrounded where it stores them alike, converted where it does not.

From floats to 8 bits values are rounded to nearest, and codes are decoded to float32. A parameter stays as the model
loads it, before or after: a remainder is converted without it, and one that is missing is 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import checks
from greedylr_fused.tensors import (
    DTYPES,
    EIGHT_BIT,
    MIXES,
    MOMENTS,
    STATE_ROWS,
    Storage,
    conversion,
    storage,
    storage_of,
    tuning,
)
from greedylr_fused.warning import warn


def restore(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    previous: Mapping[Tensor, Any],
    state_dtype: torch.dtype | None,
    *,
    tuned: bool,
) -> None:
    """Add moments, remainders and what a tuner keeps, unrounded, to what PyTorch's loader has loaded. They get memory
    of their own: training on must not change the dictionary that was loaded, nor its source.

    Args:
        optimizer: has its new state and parameter groups from the loader.
        saved: the loaded state_dict.
        previous: the optimizer's state before; tensors that are the same objects there are not copied.
        state_dtype: of moments, as the optimizer was constructed; None for that of `moment_dtype`.
        tuned: whether to take over what a tuner keeps.
    """
    group_of = {param: group for group in reversed(optimizer.param_groups) for param in group["params"]}
    lost = False
    for index, param in checks.pairs(saved, optimizer.param_groups):
        values = saved["state"].get(index, {})
        for name, dtype in (("step", torch.float32), (tuning.WRITTEN_AT, torch.float64)):
            if name in values and (tuned or name == "step"):
                count = torch.as_tensor(values[name], dtype=dtype, device=param.device).detach()
                optimizer.state[param][name] = count.reshape(()).clone()
        kept = {name: values[name].detach() for name in STATE_ROWS if name in values}
        if kept:
            own, before = storage_of(param, group_of[param], state_dtype), previous.get(param, {})
            lost = lost or own.remainder is None and "remainder" in kept
            asked = group_of[param].get("state_dtype", state_dtype)
            states = _moments(f"state[{index!r}]", kept, param, own, asked) | _remainder(kept, param, own)
            if tuned and tuning.OFFSET in kept:
                states[tuning.OFFSET] = kept[tuning.OFFSET].to(param.device, tuning.offset_dtype(param))
            for name, value in states.items():
                shared = value is kept.get(name) and values[name] is not before.get(name)
                optimizer.state[param][name] = value.clone() if shared else value
    if lost:
        warn(
            "checkpoint: its bfloat16 parameters had float32 masters, which this optimizer does not keep, so what they "
            "lacked of these is dropped; construct it with master_weights, or load the model from master_weights()"
        )


def _moments(
    where: str, saved: Mapping[str, Tensor], param: Tensor, own: Storage, asked: torch.dtype | None
) -> dict[str, Tensor]:
    """Return moments as they are to be stored; the same object where nothing changes.

    Args:
        where: the state's place in the checkpoint.
        saved: the state there, checked.
        param: its parameter.
        own: how the optimizer stores its state.
        asked: the storage type that was asked for.
    """
    into_codes = own.moments is torch.int8
    floats = [name for name in MOMENTS if name in saved]
    if EIGHT_BIT[0] in saved and not (into_codes and floats):  # what lies there in both is loaded from the other
        codes = {name: saved[name].to(param.device) for name in EIGHT_BIT}
        if into_codes:
            return codes
        moments = {name: conversion.divided(value, param) for name, value in conversion.decoded(codes).items()}
    else:
        moments = {name: conversion.divided(saved[name].to(param.device), param) for name in floats}
    if into_codes:
        return _codes(where, moments, param)
    # of one dtype, though other optimizers keep exp_avg narrower than exp_avg_sq
    widest = functools.reduce(torch.promote_types, (value.dtype for value in moments.values()))
    needs = own.moments if asked is torch.int8 or own.remainder is not None else asked
    dtype = moment_dtype(param, widest, needs)
    return {name: value.to(dtype) for name, value in moments.items()}


def _codes(where: str, moments: Mapping[str, Tensor], param: Tensor) -> dict[str, Tensor]:
    if "max_exp_avg_sq" in moments:
        checks.refuse(
            f'{where}["max_exp_avg_sq"]',
            moments["max_exp_avg_sq"].dtype,
            "no such moment beside 8-bit ones",
            "construct the group with state_dtype=torch.float32",
        )
    codes = conversion.encoded(moments, param)
    if codes is None:
        raise ValueError(
            f'checkpoint: {where}["exp_avg"], ["exp_avg_sq"]: expected finite float32 numbers, the second >= 0, to '
            "store in 8 bits, got a NaN, an infinity or a negative square; load an earlier checkpoint"
        )
    return codes


def _remainder(saved: Mapping[str, Tensor], param: Tensor, own: Storage) -> dict[str, Tensor]:
    """Return the remainder as it is to be stored: 0 if the checkpoint has none, so that the master is the parameter.

    The parameter is loaded with the model, before or after, and stays as it is.
    """
    if own.remainder is None:
        return {}
    if "remainder" not in saved:
        return {"remainder": storage.zeros(param, own.remainder)}
    return {
        "remainder": conversion.as_remainder(conversion.from_bytes(saved["remainder"].to(param.device)), own.remainder)
    }


def moment_dtype(param: Tensor, saved: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Return a loaded moment's storage type: `asked`, or else the wider of both, float32 if kernels lack that."""
    if param.is_complex():
        return param.dtype
    if asked is not None:
        return asked
    wider = torch.promote_types(param.dtype, saved)
    kind = DTYPES.get(param.dtype)
    allowed = (wider, torch.float32, param.dtype)
    return next((dtype for dtype in allowed if (kind, kind, DTYPES.get(dtype)) in MIXES), param.dtype)
