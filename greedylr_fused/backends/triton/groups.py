"""The update of chunks with moments in 8 bits: whole groups, each in the lanes of one warp, read and written once."""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound, narrow, pointer, start_of, store_each, wide, widen
from greedylr_fused.backends.triton.adamw import adamw
from greedylr_fused.backends.triton.eight_bit import (
    GROUP,
    LARGEST,
    LARGEST_SQ,
    decode,
    encode,
    fraction,
    fraction_sq,
    inverse_of,
    largest_bits,
    low_and_seed,
    mix,
    scale_of,
)
from greedylr_fused.backends.triton.masters import join, split
from greedylr_fused.backends.triton.tuner import move
from greedylr_fused.tensors import Row

_PARAM, _GRAD, _REMAINDER = tl.constexpr(int(Row.PARAM)), tl.constexpr(int(Row.GRAD)), tl.constexpr(int(Row.REMAINDER))
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(int(Row.EXP_AVG)), tl.constexpr(int(Row.EXP_AVG_SQ))
_OFFSET = tl.constexpr(int(Row.OFFSET))
_EXP_AVG_SCALE, _EXP_AVG_SQ_SCALE = tl.constexpr(int(Row.EXP_AVG_SCALE)), tl.constexpr(int(Row.EXP_AVG_SQ_SCALE))


@triton.jit
def _moments(q_ptr, q_sq_ptr, s_ptr, s_sq_ptr, at, groups, mask, mask_groups):
    """Return exp_avg and exp_avg_sq of some groups; exp_avg is 0 where exp_avg_sq is."""
    q, q_sq = tl.load(q_ptr + at, mask).to(tl.int32), tl.load(q_sq_ptr + at, mask).to(tl.int32)
    scale, scale_sq = tl.load(s_ptr + groups, mask_groups)[:, None], tl.load(s_sq_ptr + groups, mask_groups)[:, None]
    m = decode(q, scale, LARGEST).to(tl.int32, bitcast=True) | (q & -0x80000000)  # with its sign
    m = tl.where(q_sq == 0, 0.0, m.to(tl.float32, bitcast=True))
    root = decode(q_sq, scale_sq, LARGEST_SQ)
    return m, root * root


@triton.jit
def _keep_moments(q_ptr, q_sq_ptr, s_ptr, s_sq_ptr, at, groups, mask_groups, m, v, random):
    """Store new moments, but those of a group of which one is not finite."""
    root = tl.sqrt_rn(v)  # as A6 took it
    scale, finite = scale_of(largest_bits(m))
    scale_sq, finite_sq = scale_of(largest_bits(root))
    finite = finite & finite_sq
    if mask_groups is not None:
        finite = finite & mask_groups
    store_each(s_ptr + groups, scale, finite)
    store_each(s_sq_ptr + groups, scale_sq, finite)
    code = encode(tl.abs(m), inverse_of(scale)[:, None], LARGEST, fraction(random))
    code_sq = encode(root, inverse_of(scale_sq)[:, None], LARGEST_SQ, fraction_sq(random))
    code_sq = tl.where(root > 0, tl.maximum(code_sq, 1), code_sq)  # a root is far above the smallest scale, or 0
    finite = tl.broadcast_to(finite[:, None], at.shape)
    tl.store(q_ptr + at, tl.where(m < 0, -code, code).to(tl.int8), finite)
    tl.store(q_sq_ptr + at, code_sq.to(tl.uint8), finite)


@triton.jit
def _update_groups_at(
    streams, groups, mask_groups, scalars, moves, place, P: tl.constexpr, R: tl.constexpr, ONE_PIECE: tl.constexpr
):
    """Update `groups` (int32 [n]) of a chunk; `mask_groups` None: all of them."""
    p_ptr, r_ptr, g_ptr, codes, o_ptr = streams
    q_ptr, q_sq_ptr, s_ptr, s_sq_ptr = codes
    lane = tl.arange(0, GROUP)[None, :]
    at = groups[:, None] * GROUP + lane
    mask: tl.constexpr = None
    if mask_groups is not None:
        mask = tl.broadcast_to(mask_groups[:, None], at.shape)
    m, v = _moments(q_ptr, q_sq_ptr, s_ptr, s_sq_ptr, at, groups, mask, mask_groups)
    p = tl.load(p_ptr + at, mask)
    if R is not None:
        p = join(p, tl.load(r_ptr + at, mask))
    g = widen(tl.load(g_ptr + at, mask), tl.float32)
    p = widen(p, tl.float32)
    if moves is None:
        p, m, v, _ = adamw(p, g, m, v, v, scalars, False)
    else:
        step, m, v, _ = adamw(tl.zeros_like(p), g, m, v, v, scalars, False)
        p, o = move(p, tl.load(o_ptr + at, mask), step, moves)
        tl.store(o_ptr + at, o, mask)
    low, seed = low_and_seed(place, groups * GROUP, ONE_PIECE)
    if not ONE_PIECE:
        seed = seed[:, None]
    random = mix((low[:, None] + lane.to(tl.uint32)) ^ seed)
    if R is None:
        tl.store(p_ptr + at, narrow(p, P), mask)
    else:
        p, r = split(p, random, R)
        tl.store(p_ptr + at, p, mask)
        tl.store(r_ptr + at, r, mask)
    _keep_moments(q_ptr, q_sq_ptr, s_ptr, s_sq_ptr, at, groups, mask_groups, m, v, random)


@triton.jit
def update_groups(
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
    R: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Update `count` elements of a tensor from element `first` on, both multiples of a group."""
    L: tl.constexpr = tl.int8 if R is None else R
    H: tl.constexpr = P if R is None else tl.uint16  # the upper half of a master
    p = start_of(ptrs, _PARAM, tensor, n_tensors, first, P)
    g = start_of(ptrs, _GRAD, tensor, n_tensors, first, G)
    q = start_of(ptrs, _EXP_AVG, tensor, n_tensors, first, tl.int8)
    q_sq = start_of(ptrs, _EXP_AVG_SQ, tensor, n_tensors, first, tl.uint8)
    r = q
    if R is not None:
        r = start_of(ptrs, _REMAINDER, tensor, n_tensors, first, R)
    o = p
    if moves is not None:
        o = start_of(ptrs, _OFFSET, tensor, n_tensors, first, tl.float32)
    s = pointer(start_of(ptrs, _EXP_AVG_SCALE, tensor, n_tensors, first // GROUP, tl.float32), tl.float32)
    s_sq = pointer(start_of(ptrs, _EXP_AVG_SQ_SCALE, tensor, n_tensors, first // GROUP, tl.float32), tl.float32)
    n = count // GROUP
    if ((p | g | q | q_sq | r | o) & 15) != 0:
        codes = (pointer(q, tl.int8), pointer(q_sq, tl.uint8), s, s_sq)
        streams = (pointer(p, H), pointer(r, L), pointer(g, G), codes, pointer(o, tl.float32))
        for offset in range(0, loop_bound(n), REST // GROUP):
            groups = offset + tl.arange(0, REST // GROUP)
            _update_groups_at(streams, groups, groups < n, scalars, moves, place, P, R, ONE_PIECE)
    else:
        codes = (wide(q, 0, tl.int8), wide(q_sq, 0, tl.uint8), s, s_sq)
        streams = (wide(p, 0, H), wide(r, 0, L), wide(g, 0, G), codes, wide(o, 0, tl.float32))
        part = n % (BLOCK // GROUP)
        if part != 0:
            groups = tl.arange(0, BLOCK // GROUP)
            _update_groups_at(streams, groups, groups < part, scalars, moves, place, P, R, ONE_PIECE)
        for offset in range(0, loop_bound(n - part), BLOCK // GROUP):
            groups = part + offset + tl.arange(0, BLOCK // GROUP)
            _update_groups_at(streams, groups, None, scalars, moves, place, P, R, ONE_PIECE)
