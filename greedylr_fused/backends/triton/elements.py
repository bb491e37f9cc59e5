"""The update of chunks whose moments are stored as they are, element by element."""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import (
    body_of,
    head_of,
    loop_bound,
    misaligned,
    narrow,
    pointer,
    start_of,
    wide,
    widen,
)
from greedylr_fused.backends.triton.adamw import adamw
from greedylr_fused.backends.triton.eight_bit import low_and_seed, mix
from greedylr_fused.backends.triton.masters import join, split
from greedylr_fused.backends.triton.tuner import move
from greedylr_fused.tensors import Row

_PARAM, _GRAD = tl.constexpr(int(Row.PARAM)), tl.constexpr(int(Row.GRAD))
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(int(Row.EXP_AVG)), tl.constexpr(int(Row.EXP_AVG_SQ))
_OFFSET = tl.constexpr(int(Row.OFFSET))
_MAX_EXP_AVG_SQ, _REMAINDER = tl.constexpr(int(Row.MAX_EXP_AVG_SQ)), tl.constexpr(int(Row.REMAINDER))


@triton.jit
def _keep_master(p_ptr, r_ptr, at, mask, p, place, first, R: tl.constexpr, ONE_PIECE: tl.constexpr):
    """Store a master; `first`: where in its chunk the span begins."""
    random = at
    if R == tl.int8:
        low, seed = low_and_seed(place, first + at, ONE_PIECE)
        random = mix(low ^ seed)
    high, remainder = split(p, random, R)
    tl.store(p_ptr + at, high, mask)
    tl.store(r_ptr + at, remainder, mask)


@triton.jit
def _update_at(
    streams,
    at,
    mask,
    scalars,
    moves,
    place,
    first,
    P: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    AMSGRAD: tl.constexpr,
):
    """Update the elements `at` (int32) of a span that begins at element `first` of its chunk; `mask` None: all."""
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, r_ptr, o_ptr = streams
    p = tl.load(p_ptr + at, mask)
    if R is not None:
        p = join(p, tl.load(r_ptr + at, mask))
    p = widen(p, T)
    g = widen(tl.load(g_ptr + at, mask), T)
    m = widen(tl.load(m_ptr + at, mask), T)
    v = widen(tl.load(v_ptr + at, mask), T)
    v_max = v
    if AMSGRAD:
        v_max = widen(tl.load(x_ptr + at, mask), T)
    if moves is None:
        p, m, v, v_max = adamw(p, g, m, v, v_max, scalars, AMSGRAD)
    else:
        step, m, v, v_max = adamw(tl.zeros_like(p), g, m, v, v_max, scalars, AMSGRAD)
        p, offset = move(p, tl.load(o_ptr + at, mask), step, moves)
        tl.store(o_ptr + at, offset, mask)
    if R is None:
        tl.store(p_ptr + at, narrow(p, P), mask)
    else:
        _keep_master(p_ptr, r_ptr, at, mask, p, place, first, R, ONE_PIECE)
    tl.store(m_ptr + at, narrow(m, S), mask)
    tl.store(v_ptr + at, narrow(v, S), mask)
    if AMSGRAD:
        tl.store(x_ptr + at, narrow(v_max, S), mask)


@triton.jit
def _starts(
    ptrs,
    tensor,
    n_tensors,
    first,
    moves,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
):
    """Return the addresses of element `first` of all streams, 0 for a stream that the tensor does not have."""
    r = tl.zeros((), tl.int64)
    if R is not None:
        r = start_of(ptrs, _REMAINDER, tensor, n_tensors, first, R)
    o = tl.zeros((), tl.int64)
    if moves is not None:
        o = start_of(ptrs, _OFFSET, tensor, n_tensors, first, T)
    return (
        start_of(ptrs, _PARAM, tensor, n_tensors, first, P),
        start_of(ptrs, _GRAD, tensor, n_tensors, first, G),
        start_of(ptrs, _EXP_AVG, tensor, n_tensors, first, S),
        start_of(ptrs, _EXP_AVG_SQ, tensor, n_tensors, first, S),
        start_of(ptrs, _MAX_EXP_AVG_SQ, tensor, n_tensors, first, S),
        r,
        o,
    )


@triton.jit
def _body(starts, count, moves, P: tl.constexpr, G: tl.constexpr, S: tl.constexpr, T: tl.constexpr, R: tl.constexpr):
    """Return the first element of the body and its length. The narrowest stream but for the remainder says where 16
    bytes begin; unless all others agree, there is no body.
    """
    p, g, m, v, x, r, o = starts
    if P.primitive_bitwidth <= G.primitive_bitwidth and P.primitive_bitwidth <= S.primitive_bitwidth:
        head = head_of(p, P)
    elif G.primitive_bitwidth <= S.primitive_bitwidth:
        head = head_of(g, G)
    else:
        head = head_of(m, S)
    odd = misaligned(p, head, P) | misaligned(g, head, G)
    odd |= misaligned(m, head, S) | misaligned(v, head, S) | misaligned(x, head, S)
    if R is not None:
        odd |= misaligned(r, head, R)
    if moves is not None:
        odd |= misaligned(o, head, T)
    return body_of(head, odd, count)


@triton.jit
def _update_chunk(
    starts,
    begin,
    body,
    count,
    scalars,
    moves,
    place,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Update `count` elements from the addresses `starts` on, in wide accesses the `body` from element `begin` on."""
    p, g, m, v, x, r, o = starts
    L: tl.constexpr = tl.int8 if R is None else R
    H: tl.constexpr = P if R is None else tl.uint16  # the upper half of a master
    streams = (pointer(p, H), pointer(g, G), pointer(m, S), pointer(v, S), pointer(x, S), pointer(r, L), pointer(o, T))
    for offset in range(0, loop_bound(count - body), REST):
        at = offset + tl.arange(0, REST)
        mask = at < count - body
        at = tl.where(at < begin, at, at + body)
        _update_at(streams, at, mask, scalars, moves, place, 0, P, S, T, R, ONE_PIECE, AMSGRAD)
    # The body last: the loop that matters then keeps no register for what comes after it.
    streams = (
        wide(p, begin, H),
        wide(g, begin, G),
        wide(m, begin, S),
        wide(v, begin, S),
        wide(x, begin, S),
        wide(r, begin, L),
        wide(o, begin, T),
    )
    part = tl.multiple_of(body % BLOCK, 8)
    if part != 0:
        at = tl.arange(0, BLOCK)
        _update_at(streams, at, at < part, scalars, moves, place, begin, P, S, T, R, ONE_PIECE, AMSGRAD)
    for offset in range(0, loop_bound(body - part), BLOCK):
        at = part + offset + tl.arange(0, BLOCK)
        _update_at(streams, at, None, scalars, moves, place, begin, P, S, T, R, ONE_PIECE, AMSGRAD)


@triton.jit
def update_elements(
    ptrs,
    tensor,
    n_tensors,
    first,
    count,
    scalars,
    moves,
    place,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Update `count` elements of a tensor from element `first` on. `moves`: see `tuner.py`, None without a tuner."""
    starts = _starts(ptrs, tensor, n_tensors, first, moves, P, G, S, T, R)
    begin, body = _body(starts, count, moves, P, G, S, T, R)
    if starts[4] == 0:
        _update_chunk(starts, begin, body, count, scalars, moves, place, P, G, S, T, R, ONE_PIECE, False, BLOCK, REST)
    else:
        _update_chunk(starts, begin, body, count, scalars, moves, place, P, G, S, T, R, ONE_PIECE, True, BLOCK, REST)
