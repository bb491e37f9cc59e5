"""Names that tables and kernels share: storage types, their supported mixes, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class DType(IntEnum):
    """Storage types as the kernels name them (`csrc/core/common.h`)."""

    F32 = 0
    F64 = 1
    BF16 = 2
    F16 = 3


class Row(IntEnum):
    """Rows of `TensorTable.ptrs`, as `csrc/core/common.h` lists them."""

    PARAM = 0
    GRAD = 1
    EXP_AVG = 2
    EXP_AVG_SQ = 3
    MAX_EXP_AVG_SQ = 4
    COPY_BF16 = 5
    COPY_F16 = 6
    STEP = 7


class Hyper(IntEnum):
    """Columns of `TensorTable.hyper`."""

    BETA1 = 0
    BETA2 = 1
    EPS = 2
    WEIGHT_DECAY = 3
    MAXIMIZE = 4
    SPARE = 5


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
#: (parameter, gradient, moments) storage types that every backend computes.
MIXES = frozenset(
    [(t, t, t) for t in DType]
    + [(h, g, s) for h in _HALVES for g in (h, DType.F32) for s in (h, DType.F32)]
    + [(DType.F32, DType.F32, DType.BF16)]
    + [(DType.F32, h, DType.F32) for h in _HALVES]
)
#: Address of an empty gradient: not null, since the tensor does have one, and never read.
EMPTY = 1
#: The row of each moment.
MOMENT_ROWS = {"exp_avg": Row.EXP_AVG, "exp_avg_sq": Row.EXP_AVG_SQ, "max_exp_avg_sq": Row.MAX_EXP_AVG_SQ}
MOMENTS = tuple(MOMENT_ROWS)


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
