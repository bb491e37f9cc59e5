"""Float32 masters of bfloat16 parameters: a parameter holds the upper half, a remainder what it lacks.

The parameter is the master rounded to nearest, halves away from zero. With a remainder of 16 bits the master is exact;
with 8 bits it has 24, to which each step rounds it stochastically, so that steps below a 24th bit are not lost.
`csrc/core/master.h` and the Triton kernels compute the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Types of remainders, by the name in `FusedAdamW(master_weights=...)`.
REMAINDERS = {"int16": torch.int16, "int8": torch.int8}
_NAN = 0x7FC00000


def join(param: Tensor, remainder: Tensor) -> Tensor:
    """Return the master, float32, of a bfloat16 parameter and its remainder, int16 or int8.

    A parameter that was set to zero is zero, whatever its remainder.
    """
    high = param.contiguous().view(torch.int16).to(torch.int32).view(param.shape)
    low = remainder.to(torch.int32)
    if remainder.dtype == torch.int8:
        low = low << 8
    magnitude = (((high & 0x7FFF) << 16) + low).clamp(min=0)
    return (magnitude | (high & 0x8000) << 16).view(torch.float32)


def split(master: Tensor, dtype: torch.dtype, bits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return parameter and remainder of a float32 master. A NaN becomes the one NaN 7fc0 with remainder 0.

    Args:
        master: float32.
        dtype: of the remainder.
        bits: what `eight_bit.randoms` returns, in master's shape; None to round to nearest. For int8 alone.
    """
    word = master.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if dtype == torch.int8:
        added = word + (0x80 if bits is None else (bits >> 8) & 0xFF)
        word = torch.where(torch.isfinite(master), added & 0xFFFFFF00, word)
    word = torch.where(torch.isnan(master), _NAN, word)
    low = ((word & 0xFFFF) ^ 0x8000) - 0x8000  # with its sign
    high = (word - low) >> 16
    param = torch.where(high > 0x7FFF, high - 0x10000, high).to(torch.int16).view(torch.bfloat16)
    return param, (low >> 8 if dtype == torch.int8 else low).to(dtype)
