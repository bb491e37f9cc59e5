"""What a checkpoint holds beyond torch's AdamW, and how it comes back without being rounded.

`Optimizer.load_state_dict` casts floating-point state to the parameter's dtype and replaces whatever lies in
`param_groups`; distributed checkpointing keeps only `state` and `param_groups`. So the control state travels as plain
numbers under the key "control" of every parameter group, and moments wider than their parameter are put back here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.control import SAVED
from greedylr_fused.packing import DTYPES, MIXES, MOMENTS

KEY = "control"


def read_control(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The control numbers of a state_dict's `param_groups`; None if it was written by another optimizer.

    Raises:
        ValueError: they are there but damaged; names the key.
    """
    found = [dict(group.get(KEY) or {}) for group in groups]
    if not any(found):
        return None
    for i, numbers in enumerate(found):
        for name in (*SAVED, "lr", "initial_lr", "window"):
            if name not in numbers:
                raise ValueError(
                    f'checkpoint: param_groups[{i}]["{KEY}"] has no "{name}", allowed is what FusedAdamW.state_dict() '
                    f'wrote; load the whole checkpoint, or delete "{KEY}" from every group to start the schedule anew'
                )
        for name in ("lr", "initial_lr"):
            if not math.isfinite(numbers[name]) or numbers[name] < 0:
                raise ValueError(
                    f'checkpoint: param_groups[{i}]["{KEY}"]["{name}"] is {numbers[name]}, allowed is a finite '
                    "number >= 0; the file is damaged: load an earlier checkpoint"
                )
    return found


def restore_moments(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    state_dtype: torch.dtype | None,
    previous: Mapping[Tensor, dict[str, Any]],
) -> None:
    """Put back the moments that torch's loader rounded to the parameter's dtype, and separate from the checkpoint's
    memory what it aliased: training on must not change the dictionary that was loaded, nor its source.

    Args:
        saved: the loaded state_dict.
        groups: the optimizer's live parameter groups.
        state: its live state, already filled by torch's loader.
        state_dtype: the dtype asked for at construction; None keeps the wider of the checkpoint's and parameter's.
        previous: its state before loading: tensors found there again stay as they are.
    """
    ids = itertools.chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = itertools.chain.from_iterable(group["params"] for group in groups)
    for index, param in zip(ids, params, strict=True):
        values = saved["state"].get(index, {})
        if "step" in values:
            count = torch.as_tensor(values["step"], dtype=torch.float32, device=param.device)
            state[param]["step"] = count.reshape(()).clone()
        for name in MOMENTS:
            value = values.get(name)
            if isinstance(value, Tensor):
                dtype = moment_dtype(param, value.dtype, state_dtype)
                moved = value.to(device=param.device, dtype=dtype)
                own = previous.get(param, {}).get(name)
                state[param][name] = moved.clone() if moved is value and value is not own else moved


def moment_dtype(param: Tensor, saved: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Storage type of a loaded moment."""
    if param.is_complex():
        return param.dtype
    if asked is not None:
        return asked
    wider = torch.promote_types(param.dtype, saved)
    mix = (DTYPES.get(param.dtype), DTYPES.get(param.dtype), DTYPES.get(wider))
    return wider if mix in MIXES else param.dtype
