"""The gradient measurement in Triton: one read of every gradient, and what it decides (G1-G4) in the same launch.

One program per chunk. Sums are added in a tree that depends on the table alone: the elements of a chunk, the chunks of
a group by whichever of its programs finishes last, the groups by the last of those. So the end has few sums left to
add, and never in another order.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton_access import (
    address,
    chunk_of,
    last_to_finish,
    loop_bound,
    pointer,
    whole,
    wide,
    widen,
)
from greedylr_fused.backends.triton_control import add_sums, conclude
from greedylr_fused.formats import Row

#: Chunks whose sums are added together.
GROUP = 512

_GRAD = tl.constexpr(int(Row.GRAD))


@triton.jit
def _square(total, bad, elements, mask, G: tl.constexpr):
    """Add the squares of some elements; for float64, whose squares overflow, set `bad` where one is not finite."""
    if mask is None:
        g = tl.load(elements)
    else:
        g = tl.load(elements, mask, other=0)
    if G != tl.float64:
        g = widen(g, tl.float32)
    g = g.to(tl.float64)
    if G == tl.float64:
        bad = tl.where(tl.abs(g) < float("inf"), bad, 1)
    return tl.fma(g, g, total), bad  # of 32 bits or fewer the square is exact, so that this rounds as two operations


@triton.jit
def _square_body(total, bad, elements, body, G: tl.constexpr, BLOCK: tl.constexpr):
    full = body // BLOCK * BLOCK
    for offset in range(0, loop_bound(full), BLOCK):
        total, bad = _square(total, bad, elements + offset + tl.arange(0, BLOCK), None, G)
    if full != body:
        at = full + tl.arange(0, BLOCK)
        total, bad = _square(total, bad, elements + at, at < body, G)
    return total, bad


@triton.jit
def _measure_chunk(start, count, G: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr):
    """Sum of squares of `count` elements from address `start` on, and 1 if one of them is not finite.

    Which thread adds which element does not depend on the address, only how wide it is read: the norm stays the same,
    to the last bit, when a gradient moves.
    """
    total = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    body = whole(count)
    if start % 16 == 0:
        total, bad = _square_body(total, bad, wide(start, 0, G), body, G, BLOCK)
    else:
        total, bad = _square_body(total, bad, pointer(start, G), body, G, BLOCK)
    at = body + tl.arange(0, REST)
    zeros = tl.zeros([REST], tl.float64)
    rest, rest_bad = _square(zeros, tl.zeros([REST], tl.int32), pointer(start, G) + at, at < count, G)
    total, bad = tl.sum(total) + tl.sum(rest), tl.max(bad) | tl.max(rest_bad)
    if G != tl.float64:  # the sum is finite if and only if every element is
        bad = tl.where(total < float("inf"), 0, 1)
    return total, bad


_MEASURE_ARGS = "ptrs numel chunk_tensor chunk_index control first_chunk norm_weight n_tensors n_chunks".split()
_MEASURE_ARGS += "square_sums nonfinite counters first_group n_groups".split()


@triton.jit(do_not_specialize=_MEASURE_ARGS)
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
    G: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    GROUP: tl.constexpr,
    CLOSES: tl.constexpr,
    DECIDES: tl.constexpr,
):
    """Sum of squares (float64) and non-finite flag (int32) of the gradient in one chunk, then, from place `n_chunks`
    on, of a group of chunks; in the launch that CLOSES the measurement, of all groups, and the decision if it DECIDES.
    """
    programs = tl.num_programs(0)
    index = programs - 1 - tl.program_id(0)  # the update begins with what was read last and is still in the cache
    chunk = first_chunk + index
    tensor = tl.load(chunk_tensor + chunk)
    g = address(ptrs, _GRAD, tensor, n_tensors)
    first, count, _ = chunk_of(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
    count = tl.where(g == 0, 0, count)
    total, bad = _measure_chunk(g + first * (G.primitive_bitwidth // 8), count, G, BLOCK, REST)
    tl.store(square_sums + chunk, total * tl.load(norm_weight + tensor))
    tl.store(nonfinite + chunk, bad)
    group = index // GROUP
    size = tl.minimum(programs - group * GROUP, GROUP)
    if last_to_finish(counters + 1 + first_group + group, size):
        begin = first_chunk + group * GROUP
        total, bad = add_sums(square_sums + begin, nonfinite + begin, size)
        tl.store(square_sums + n_chunks + first_group + group, total)
        tl.store(nonfinite + n_chunks + first_group + group, bad)
        if CLOSES:
            if last_to_finish(counters, tl.cdiv(programs, GROUP)):
                conclude(control, square_sums + n_chunks, nonfinite + n_chunks, n_groups, DECIDES)
