"""Float32 masters of bfloat16 parameters in Triton: `greedylr_fused/tensors/masters.py` specifies them and says why."""

import triton
import triton.language as tl

_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def join(high, remainder):
    """Return the master, float32, of a parameter's bits (uint16) and its remainder (int16 or int8)."""
    low = remainder.to(tl.int32)
    if remainder.dtype == tl.int8:
        low = low << 8
    high = high.to(tl.int32)
    magnitude = tl.maximum(((high & 0x7FFF) << 16) + low, 0)  # a parameter that was set to zero is zero
    return (magnitude | ((high & 0x8000) << 16)).to(tl.float32, bitcast=True)


@triton.jit
def split(master, random, R: tl.constexpr):
    """Return the parameter's bits (uint16) and the remainder (R: int16 or int8) of a float32 master.

    random: of each element 32 bits (uint32), of which 8-15 round to 24 bits. For int8 alone.
    """
    word = master.to(tl.uint32, bitcast=True)
    if R == tl.int8:
        word += (random >> 8) & 0xFF  # below the bits that are kept: infinity stays what it is
    word = tl.where(master != master, _NAN, word)
    high = (word + 0x8000) >> 16
    if R == tl.int8:
        word = word >> 8
    return high.to(tl.uint16), word.to(R)
