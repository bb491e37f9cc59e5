"""What a tuner keeps of each parameter: how far it is from where it started, and the S of the step that wrote it.

`mechanic_offset` is x0 - x, for the parameter x and what it started from, x0, which need not be kept itself: in
float32, or in float64 and complex where the parameter is. The parameter alone would not tell it: while S is near its
start of 1e-6, an update moves a weight by less than the spacing of float32 numbers near it, as soon as its LR is low.
Both are moved by the same amount at each step, so that what is written to a parameter by hand stays there.
`mechanic_s` is the S of the last step that had a gradient, float64 of no dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors import storage

OFFSET, WRITTEN_AT = "mechanic_offset", "mechanic_s"
TUNED = (OFFSET, WRITTEN_AT)


def offset_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's offset."""
    return torch.promote_types(param.dtype, torch.float32)


def check(param: Tensor, own: storage.Storage) -> None:
    """Refuse a parameter that the moves of a tuner would not reach.

    Args:
        param: a parameter.
        own: how its state is stored.

    Raises:
        TypeError: it has 16 bits and no master.
    """
    if param.dtype in (torch.bfloat16, torch.float16) and own.remainder is None:
        other = 'pass master_weights="int16"' if param.dtype == torch.bfloat16 else "convert it to float32"
        raise TypeError(
            "FusedAdamW(tuner=...): expected float32 or float64 parameters, or bfloat16 ones with master_weights, got "
            f"a {param.dtype} parameter, whose first moves would all be rounded away; {other}"
        )


def follow(state: dict[str, Any], param: Tensor, *, tuned: bool) -> None:
    """Give a parameter's state what a tuner keeps, if it lacks that; take it away if there is none.

    Args:
        state: of the parameter.
        param: as it is now: where it starts, if it has not been tuned before.
        tuned: whether there is a tuner.
    """
    if not tuned:
        for name in TUNED:
            state.pop(name, None)
    elif not state.keys() >= set(TUNED) or state[OFFSET].dtype != offset_dtype(param):
        state[OFFSET] = storage.zeros(param, offset_dtype(param))
        state[WRITTEN_AT] = torch.zeros((), dtype=torch.float64, device=param.device)
