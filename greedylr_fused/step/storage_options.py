"""Checks of the options that say how states are stored: `state_dtype` and `master_weights`, of optimizer and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from greedylr_fused.tensors import DTYPES, MIXES, DType, is_flattened, masters, storage, storage_of, tuning
from greedylr_fused.warning import warn

_STATE_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)


def check_params(group: Mapping[str, Any], state_dtype: torch.dtype | None) -> None:
    """Refuse parameters whose state could not be stored as asked (frozen ones may have any dtype).

    Args:
        group: a parameter group; its own "state_dtype" counts before that of the optimizer.
        state_dtype: as the optimizer was constructed.

    Raises:
        TypeError: names both dtypes.
        ValueError: 8-bit moments or masters where there are none.
    """
    state_dtype, master = group.get("state_dtype", state_dtype), group.get("master_weights")
    check_storage(state_dtype, master, amsgrad=group["amsgrad"])
    for param in group["params"]:
        if not param.requires_grad:
            continue
        own = DTYPES.get(param.dtype.to_real())
        if (state_dtype is torch.int8 or master) and is_flattened(param):
            raise ValueError(
                "FusedAdamW: expected parameters of their own shapes with 8-bit moments or master_weights, got a flat "
                "one of FullyShardedDataParallel; shard the model by torch.distributed.fsdp.fully_shard"
            )
        if master and own is DType.F16 or state_dtype is torch.int8 and own in (DType.F16, DType.F64):
            raise TypeError(
                "FusedAdamW: expected float32 or bfloat16 parameters with state_dtype=torch.int8 or master_weights, "
                f"got a {param.dtype} parameter; convert it to bfloat16"
            )
        if state_dtype is torch.int8 and storage.in_groups(param.shape) and not storage.lies_in_groups(param):
            warn(
                "state_dtype=torch.int8: expected row-major parameters, divided among ranks along dimension 0, or "
                "along dimension 1 in multiples of 64 elements, got others, which keep float32 moments; call "
                "contiguous() on them, or divide them so, to save memory"
            )
        stored = DTYPES.get(storage_of(param, group, state_dtype).moments.to_real(), DType.F32)
        if (own, own, stored) not in MIXES:
            raise TypeError(
                "FusedAdamW: expected float32, float64, bfloat16 and float16 parameters with moments of their own "
                f"dtype, 16-bit ones with float32 moments and float32 ones with bfloat16 moments, got a {param.dtype} "
                f"parameter and state_dtype={state_dtype}; convert the parameter or change state_dtype"
            )


def warn_of_no_masters(groups: Sequence[Mapping[str, Any]]) -> None:
    """Warn of `master_weights` that no parameter has."""
    params = [param for group in groups if group.get("master_weights") for param in group["params"]]
    if params and all(param.dtype.to_real() is not torch.bfloat16 for param in params):
        warn(
            "master_weights: expected bfloat16 parameters, whose rounding it keeps, got "
            f"{params[0].dtype} ones alone, which need none; call model.bfloat16() first, or leave it out"
        )


def check_tuned(group: Mapping[str, Any], state_dtype: torch.dtype | None, tuner: Any) -> None:
    """Refuse parameters that a tuner, if there is one, could not move: see `tuning.check`."""
    for param in group["params"] if tuner is not None else ():
        if param.requires_grad:
            tuning.check(param, storage_of(param, group, state_dtype))


def check_storage(state_dtype: torch.dtype | None, master_weights: str | None, *, amsgrad: bool) -> None:
    """Check the options that say how a group's state is stored.

    Raises:
        ValueError: names the option.
    """
    if state_dtype not in _STATE_DTYPES:
        raise ValueError(
            "state_dtype: expected None (the parameter's dtype), torch.int8 or a floating-point dtype of 16, 32 or 64 "
            f"bits, got {state_dtype!r}; write state_dtype=torch.int8 or torch.float32"
        )
    if master_weights is not None and master_weights not in masters.REMAINDERS:
        raise ValueError(
            f'master_weights: expected "int16" (exact float32 masters), "int8" (24 bits) or None, got '
            f'{master_weights!r}; write master_weights="int16"'
        )
    if master_weights is not None and state_dtype not in (None, torch.int8, torch.float32):
        raise ValueError(
            "master_weights: expected state_dtype=torch.int8 or torch.float32 (the default with masters), got "
            f"{state_dtype}; leave state_dtype out"
        )
    if amsgrad and state_dtype is torch.int8:
        raise ValueError(
            "amsgrad: expected False with state_dtype=torch.int8, got True; leave amsgrad out, or write "
            "state_dtype=torch.float32"
        )
