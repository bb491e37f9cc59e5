"""The gradient measurement in Triton: one read of every gradient, and what it decides (G1-G4) in the same launch.

One program per chunk. Sums are added in a tree that depends on the table alone: the elements of a chunk, the chunks of
a group by whichever of its programs finishes last, the groups by the last of those. So few sums are left for the end,
and their order never changes.

With L1 absolute values are added up beside the squares; as a constant of the compilation it costs nothing when off.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import (
    address,
    chunk_of,
    kernel,
    last_to_finish,
    loop_bound,
    pointer,
    whole,
    wide,
    widen,
)
from greedylr_fused.backends.triton.control import add_sums, add_up, conclude, set_moved
from greedylr_fused.backends.triton.moved import add_moved, moved_sums, store_moved
from greedylr_fused.backends.triton.tuner import direction_weights
from greedylr_fused.tensors import Row

#: Chunks whose sums are added together.
GROUP = 512

_GRAD = tl.constexpr(int(Row.GRAD))
#: What `_magnitude` multiplies by, and the square of what it makes of infinity.
_SCALE, _SQUARE_OF_INFINITY = tl.constexpr(2.0**896), tl.constexpr(2.0**256)


@triton.jit
def _magnitude(g, SHIFTED: tl.constexpr):
    """Return the absolute value of float32 numbers in float64.

    SHIFTED: by their bits, since GPUs convert few numbers at a time. With three more bits of exponent in front they are
    those of |g| * 2^-896, of a subnormal g too, and the product is exact. Infinity and NaN become numbers from 2^128
    on, which no other g does.
    """
    if SHIFTED:
        bits = g.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
        return (bits.to(tl.uint64) << 29).to(tl.float64, bitcast=True) * _SCALE
    return tl.abs(g.to(tl.float64))


@triton.jit
def _square(total, absolute, bad, elements, mask, G: tl.constexpr, L1: tl.constexpr, SHIFTED: tl.constexpr):
    """Add the squares of some elements, and with L1 their absolute values; for float64, whose squares overflow, set
    `bad` where one is not finite.
    """
    if mask is None:
        g = tl.load(elements)
    else:
        g = tl.load(elements, mask, other=0)
    if G == tl.float64:
        g = tl.abs(g)
        bad = tl.where(g < float("inf"), bad, 1)
    else:
        g = _magnitude(widen(g, tl.float32), SHIFTED)
    total = tl.fma(g, g, total)  # of 32 bits or fewer the square is exact, so that this rounds as two operations
    if L1:
        absolute += g
    return total, absolute, bad


@triton.jit
def _square_body(
    total, absolute, bad, elements, body, G: tl.constexpr, L1: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr
):
    full = body // BLOCK * BLOCK
    for offset in tl.range(0, loop_bound(full), BLOCK, loop_unroll_factor=2):
        at = elements + offset + tl.arange(0, BLOCK)
        total, absolute, bad = _square(total, absolute, bad, at, None, G, L1, SHIFTED)
    if full != body:
        at = full + tl.arange(0, BLOCK)
        total, absolute, bad = _square(total, absolute, bad, elements + at, at < body, G, L1, SHIFTED)
    return total, absolute, bad


@triton.jit
def _add_up_chunk(
    start,
    count,
    G: tl.constexpr,
    L1: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    SHIFTED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return the sums of squares and, with L1, of absolute values of `count` elements from address `start` on, and of
    float64 1 if one of them is not finite.

    The address decides how wide an element is read, but not which thread adds it: when a gradient moves, the norm
    keeps its bits.
    """
    total = tl.zeros([BLOCK], tl.float64)
    absolute = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    body = whole(count)
    if WIDE & (start % 16 == 0):
        total, absolute, bad = _square_body(total, absolute, bad, wide(start, 0, G), body, G, L1, SHIFTED, BLOCK)
    else:
        total, absolute, bad = _square_body(total, absolute, bad, pointer(start, G), body, G, L1, SHIFTED, BLOCK)
    at = body + tl.arange(0, REST)
    zeros = tl.zeros([REST], tl.float64)
    elements = pointer(start, G) + at
    none_bad = tl.zeros([REST], tl.int32)
    rest, rest_absolute, rest_bad = _square(zeros, zeros, none_bad, elements, at < count, G, L1, SHIFTED)
    total, bad = tl.sum(total) + tl.sum(rest), tl.max(bad) | tl.max(rest_bad)
    return total, tl.sum(absolute) + tl.sum(rest_absolute), bad


@triton.jit
def _measure_chunk(start, count, G: tl.constexpr, L1: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr):
    """Return what `_add_up_chunk` does, of any type 1 if an element is not finite."""
    SHIFTED: tl.constexpr = G != tl.float64
    total, absolute, bad = _add_up_chunk(start, count, G, L1, BLOCK, REST, SHIFTED, True)
    if SHIFTED:
        if total >= _SQUARE_OF_INFINITY:  # one is not finite, or they are huge: add them up as they are
            total, absolute, bad = _add_up_chunk(start, count, G, L1, BLOCK, REST, False, False)
            bad = tl.where(total < float("inf"), 0, 1)  # the sum is finite if and only if every element is
    return total, absolute, bad


@kernel
def measure_kernel(
    ptrs,
    numel,
    chunk_tensor,
    chunk_index,
    control,
    first_chunk,
    norm_weight,
    n_tensors,
    n_chunks,
    square_sums,
    nonfinite,
    counters,
    first_group,
    n_groups,
    group_of,
    hyper,
    G: tl.constexpr,
    P: tl.constexpr,
    R: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    GROUP: tl.constexpr,
    CLOSES: tl.constexpr,
    DECIDES: tl.constexpr,
    L1: tl.constexpr,
    TUNED: tl.constexpr,
):
    """Store the sum of squares (float64) and non-finite flag (int32) of the gradient in one chunk, then, from place
    `n_chunks` on, of a group of chunks; in the launch that CLOSES the measurement, add up all groups, and clip if it
    DECIDES. With L1 the sums of absolute values follow those of all squares; if TUNED, three sums of gradients,
    parameters (types P, R as in the update) and offsets follow these, each of all chunks and groups.
    """
    programs = tl.num_programs(0)
    index = programs - 1 - tl.program_id(0)  # the update begins with what was read last and is still in the cache
    chunk = first_chunk + index
    tensor = tl.load(chunk_tensor + chunk)
    g = address(ptrs, _GRAD, tensor, n_tensors)
    first, count, _ = chunk_of(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
    count = tl.where(g == 0, 0, count)
    total, absolute, bad = _measure_chunk(g + first * (G.primitive_bitwidth // 8), count, G, L1, BLOCK, REST)
    abs_sums = square_sums + n_chunks + n_groups
    weight = tl.load(norm_weight + tensor)
    tl.store(square_sums + chunk, total * weight)
    if L1:
        tl.store(abs_sums + chunk, absolute * weight)
    tl.store(nonfinite + chunk, bad)
    places = n_chunks + n_groups
    moved = abs_sums
    if L1:
        moved += places
    if TUNED:
        squares, grads, params = moved_sums(ptrs, tensor, n_tensors, first, count, P, G, R, BLOCK)
        in_grads, in_params = direction_weights(control, ptrs, hyper, group_of, tensor, n_tensors, weight)
        store_moved(moved, places, chunk, squares * weight, grads * in_grads, params * in_params)
    group = index // GROUP
    size = tl.minimum(programs - group * GROUP, GROUP)
    if last_to_finish(counters + 1 + first_group + group, size):
        begin = first_chunk + group * GROUP
        total, bad = add_sums(square_sums + begin, nonfinite + begin, size)
        tl.store(square_sums + n_chunks + first_group + group, total)
        tl.store(nonfinite + n_chunks + first_group + group, bad)
        if L1:
            tl.store(abs_sums + n_chunks + first_group + group, add_up(abs_sums + begin, size))
        if TUNED:
            squares, grads, params = add_moved(moved, places, begin, size)
            store_moved(moved, places, n_chunks + first_group + group, squares, grads, params)
        if CLOSES:
            if last_to_finish(counters, tl.cdiv(programs, GROUP)):
                if TUNED:
                    squares, grads, params = add_moved(moved, places, n_chunks, n_groups)
                    set_moved(control, squares, grads, params)
                abs_sums += n_chunks
                conclude(control, square_sums + n_chunks, abs_sums, nonfinite + n_chunks, n_groups, DECIDES, L1, TUNED)
