"""What a tuner needs of parameters and gradients in Triton, added up by the program that has just read the gradient."""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound, pointer, start_of, wide, widen
from greedylr_fused.backends.triton.control import add_up
from greedylr_fused.backends.triton.masters import join
from greedylr_fused.tensors import Row

_PARAM, _GRAD = tl.constexpr(int(Row.PARAM)), tl.constexpr(int(Row.GRAD))
_REMAINDER, _OFFSET = tl.constexpr(int(Row.REMAINDER)), tl.constexpr(int(Row.OFFSET))


@triton.jit
def _add(sums, streams, at, mask, R: tl.constexpr):
    """Add the products of the elements `at`; `mask` None: of all."""
    squares, grads, params = sums
    p_ptr, g_ptr, o_ptr, r_ptr = streams
    if mask is None:
        p, g, o = tl.load(p_ptr + at), tl.load(g_ptr + at), tl.load(o_ptr + at)
        if R is not None:
            p = join(p, tl.load(r_ptr + at))
    else:
        p = tl.load(p_ptr + at, mask, other=0)
        g, o = tl.load(g_ptr + at, mask, other=0), tl.load(o_ptr + at, mask, other=0)
        if R is not None:
            p = join(p, tl.load(r_ptr + at, mask, other=0))
    p, g, o = widen(p, tl.float64), widen(g, tl.float64), widen(o, tl.float64)
    return squares + p * p, grads + g * o, params + p * o


@triton.jit
def moved_sums(
    ptrs,
    tensor,
    n_tensors,
    first,
    count,
    P: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the sums of squares, of gradient times offset and of parameter times offset, of `count` elements from
    element `first` of a tensor on. Which thread adds which does not depend on the address.
    """
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    L: tl.constexpr = tl.int8 if R is None else R
    H: tl.constexpr = P if R is None else tl.uint16  # the upper half of a master
    p = start_of(ptrs, _PARAM, tensor, n_tensors, first, P)
    g = start_of(ptrs, _GRAD, tensor, n_tensors, first, G)
    o = start_of(ptrs, _OFFSET, tensor, n_tensors, first, T)
    r = p
    if R is not None:
        r = start_of(ptrs, _REMAINDER, tensor, n_tensors, first, R)
    zeros = tl.zeros([BLOCK], tl.float64)
    sums = (zeros, zeros, zeros)
    full = count // BLOCK * BLOCK
    if ((p | g | o | r) & 15) == 0:
        streams = (wide(p, 0, H), wide(g, 0, G), wide(o, 0, T), wide(r, 0, L))
        for offset in range(0, loop_bound(full), BLOCK):
            sums = _add(sums, streams, offset + tl.arange(0, BLOCK), None, R)
    else:
        streams = (pointer(p, H), pointer(g, G), pointer(o, T), pointer(r, L))
        for offset in range(0, loop_bound(full), BLOCK):
            sums = _add(sums, streams, offset + tl.arange(0, BLOCK), None, R)
    at = full + tl.arange(0, BLOCK)
    streams = (pointer(p, H), pointer(g, G), pointer(o, T), pointer(r, L))
    squares, grads, params = _add(sums, streams, at, at < count, R)
    return tl.sum(squares), tl.sum(grads), tl.sum(params)


@triton.jit
def store_moved(sums, places, at, squares, grads, params):
    """Store three sums at place `at` of the arrays `sums`, `sums + places` and `sums + 2 * places`."""
    tl.store(sums + at, squares)
    tl.store(sums + places + at, grads)
    tl.store(sums + 2 * places + at, params)


@triton.jit
def add_moved(sums, places, begin, n):
    """Return the totals of `n` sums from place `begin` on of those arrays."""
    at = sums + begin
    return add_up(at, n), add_up(at + places, n), add_up(at + 2 * places, n)
