"""Moments in 8 bits in Triton: `greedylr_fused/tensors/eight_bit.py` specifies them and says why.

Integers and float32 are converted by their bits where that is exact: conversions share one slow unit of GPUs with the
roots, of which there are five per element.
"""

import triton
import triton.language as tl

from greedylr_fused.tensors import Row, eight_bit

_NUMBER, _FIRST = tl.constexpr(int(Row.NUMBER)), tl.constexpr(int(Row.FIRST))
_RUN, _STRIDE = tl.constexpr(int(Row.RUN)), tl.constexpr(int(Row.STRIDE))
GROUP = tl.constexpr(eight_bit.GROUP)
LARGEST, LARGEST_SQ = tl.constexpr(float(eight_bit.LARGEST)), tl.constexpr(float(eight_bit.LARGEST_SQ))
_SMALLEST_SCALE = tl.constexpr(eight_bit.SMALLEST_SCALE)
_INFINITY = tl.constexpr(0x7F800000)
#: Amid the float32 numbers that are whole and whose last bits count them, with its bits.
_MIDDLE, _MIDDLE_BITS = tl.constexpr(1.5 * 2.0**23), tl.constexpr(0x4B400000)
#: 1, and half of what the 8th, the 16th bit behind the point is worth.
_HALF_BELOW_8, _HALF_BELOW_16 = tl.constexpr(0x3F804000), tl.constexpr(0x3F800040)


@triton.jit
def mix(x):
    """Return a 32-bit hash of 32-bit numbers (uint32)."""
    x = x ^ (x >> 16)
    x = (x.to(tl.uint64) * 0x7FEB352D).to(tl.uint32)  # in 32 bits when compiled; the interpreter refuses what overflows
    x = x ^ (x >> 15)
    x = (x.to(tl.uint64) * 0x846CA68B).to(tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _seed(upper, number, step):
    """Return the part of the hash that elements share whose index has the same upper half (all uint32)."""
    return mix(mix(mix(upper) ^ number) ^ step)


@triton.jit
def place_of(ptrs, tensor, n_tensors, first, steps_taken, CHUNK: tl.constexpr, ONE_PIECE: tl.constexpr):
    """Return where a chunk that begins at element `first` of a part lies in the whole, as `low_and_seed` takes it."""
    place = ptrs + tensor
    index = tl.load(place + _FIRST * n_tensors) + first
    number = tl.load(place + _NUMBER * n_tensors).to(tl.uint32)
    step = (steps_taken.to(tl.int64) + 1).to(tl.uint32)
    if ONE_PIECE:
        found = index.to(tl.uint32), _seed((index >> 32).to(tl.uint32), number, step)
    else:
        run = tl.load(place + _RUN * n_tensors)
        gap = tl.load(place + _STRIDE * n_tensors) - run
        # What a chunk can tell of its runs: one that is longer than it ends at most once.
        length = tl.minimum(run, CHUNK)
        before = (length - tl.minimum(run - first % run, CHUNK)).to(tl.float32)
        found = index + first // run * gap, number, step, before + 0.5, 1.0 / length.to(tl.float32), gap
    return found


@triton.jit
def low_and_seed(place, at, ONE_PIECE: tl.constexpr):
    """Return for elements of a chunk (int32, from its first) the lower half of their index in the whole parameter, and
    the seed that goes with the upper half (uint32), which is one number if the chunk lies in ONE_PIECE.
    """
    if ONE_PIECE:
        low, seed = place
        low = low + at.to(tl.uint32)
    else:
        index, number, step, before, inverse, gap = place
        run = ((at.to(tl.float32) + before) * inverse).to(tl.int32)  # exact: below 2^20, and half off from whole
        index = index + at + run.to(tl.int64) * gap
        low, seed = index.to(tl.uint32), _seed((index >> 32).to(tl.uint32), number, step)
    return low, seed


@triton.jit
def _to_float(n):
    """Convert integers between -2^22 and 2^22."""
    return (n + _MIDDLE_BITS).to(tl.float32, bitcast=True) - _MIDDLE


@triton.jit
def fraction(random):
    """Return what rounds codes of exp_avg: (bits 0-7 + 1/2) / 256."""
    return (((random & 0xFF) << 15) | _HALF_BELOW_8).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def fraction_sq(random):
    """Return what rounds codes of sqrt(exp_avg_sq): (bits 16-31 + 1/2) / 65536."""
    return (((random >> 9) & 0x7FFF80) | _HALF_BELOW_16).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def decode(code, scale, LARGEST: tl.constexpr):
    """Return the magnitudes of codes (int32)."""
    t = _to_float(code) * (1.0 / LARGEST)
    t = t * t
    return t * t * scale


@triton.jit
def largest_bits(x):
    """Return the bits (int32) of the largest |x| of each row: as integers, NaN and infinity are above all others."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def scale_of(bits):
    """Return what `largest_bits` found as a scale, and whether it is finite."""
    scale = bits.to(tl.float32, bitcast=True)
    return tl.where(scale < _SMALLEST_SCALE, 0.0, scale), bits < _INFINITY


@triton.jit
def inverse_of(scale):
    """Return 1 / scale, rounded correctly down to subnormal numbers, and 0 of 0."""
    return tl.where(scale > 0, tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale), 0.0)


@triton.jit
def encode(x, inverse, LARGEST: tl.constexpr, u):
    """Return the codes (int32, in [0, LARGEST]) of x >= 0: fourth roots of their shares, plus u, the fraction cut off.

    What x and inverse are if not finite does not matter.
    """
    code = LARGEST * tl.sqrt(tl.sqrt(x * inverse)) + u
    return tl.minimum(code, LARGEST).to(tl.int32)
