"""Names that tables and kernels share: storage types, their supported mixes, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class DType(IntEnum):
    """Storage types as the kernels name them (`csrc/core/common.h`). Of I64 are only the weights of losses.

    BF16_R16 and BF16_R8 are bfloat16 parameters with the remainder of a float32 master (`masters.py`), Q8 moments as
    codes of 8 bits with scales (`eight_bit.py`).
    """

    F32 = 0
    F64 = 1
    BF16 = 2
    F16 = 3
    I64 = 4
    BF16_R16 = 5
    BF16_R8 = 6
    Q8 = 7


class Row(IntEnum):
    """Rows of `TensorTable.ptrs`, as `csrc/core/common.h` lists them: addresses, what decides how a part of a parameter
    is rounded (see `Place`), and the addresses of what a tuner keeps (see `tuning.py`).
    """

    PARAM = 0
    GRAD = 1
    EXP_AVG = 2
    EXP_AVG_SQ = 3
    MAX_EXP_AVG_SQ = 4
    REMAINDER = 5
    EXP_AVG_SCALE = 6
    EXP_AVG_SQ_SCALE = 7
    COPY_BF16 = 8
    COPY_F16 = 9
    STEP = 10
    NUMBER = 11
    FIRST = 12
    RUN = 13
    STRIDE = 14
    OFFSET = 15
    WRITTEN_AT = 16


class Hyper(IntEnum):
    """Columns of `TensorTable.hyper`. The weight decay at an LR is WEIGHT_DECAY + LR * DECAY_SLOPE."""

    BETA1 = 0
    BETA2 = 1
    EPS = 2
    WEIGHT_DECAY = 3
    MAXIMIZE = 4
    DECAY_SLOPE = 5


#: The key of a group whose weight decay is corrected, and there the peak LR.
CORRECTED = "corrected_weight_decay"

DTYPES = {torch.float32: DType.F32, torch.float64: DType.F64, torch.bfloat16: DType.BF16, torch.float16: DType.F16}
#: (type code, bits) of DLPack for every dtype that a gradient may have.
DLPACK = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
}
_HALVES = (DType.BF16, DType.F16)
_WITH_MASTERS = (DType.BF16_R16, DType.BF16_R8)
#: (parameter, gradient, moments) storage types that every backend computes.
MIXES = frozenset(
    [(t, t, t) for t in DTYPES.values()]
    + [(h, g, s) for h in _HALVES for g in (h, DType.F32) for s in (h, DType.F32)]
    + [(DType.F32, DType.F32, DType.BF16)]
    + [(DType.F32, h, DType.F32) for h in _HALVES]
    + [(DType.F32, DType.F32, DType.Q8)]
    + [(DType.BF16, g, DType.Q8) for g in (DType.BF16, DType.F32)]
    + [(p, g, s) for p in _WITH_MASTERS for g in (DType.BF16, DType.F32) for s in (DType.F32, DType.Q8)]
)
#: Address of an empty gradient: not null, since the tensor does have one, and never read.
EMPTY = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
#: Names of 8-bit moments: the codes, then their scales.
EIGHT_BIT = ("exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale")
#: The row of each tensor of a state that kernels read and write.
STATE_ROWS = {
    "exp_avg": Row.EXP_AVG,
    "exp_avg_sq": Row.EXP_AVG_SQ,
    "max_exp_avg_sq": Row.MAX_EXP_AVG_SQ,
    "exp_avg_q": Row.EXP_AVG,
    "exp_avg_sq_q": Row.EXP_AVG_SQ,
    "exp_avg_scale": Row.EXP_AVG_SCALE,
    "exp_avg_sq_scale": Row.EXP_AVG_SQ_SCALE,
    "remainder": Row.REMAINDER,
    "mechanic_offset": Row.OFFSET,
}
#: What is stored under each name but those of moments.
STATE_DTYPES = {
    "exp_avg_q": (torch.int8,),
    "exp_avg_sq_q": (torch.uint8,),
    "exp_avg_scale": (torch.float32,),
    "exp_avg_sq_scale": (torch.float32,),
    "remainder": (torch.int16, torch.int8),
}


@dataclass(frozen=True)
class Launch:
    """The chunks `first` to `first + count` of one mix of storage types."""

    param: DType
    grad: DType
    state: DType
    first: int
    count: int


def real(tensor: Tensor) -> Tensor:
    """Return the tensor, or its real view if complex (last dimension 2: real, imaginary part)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
