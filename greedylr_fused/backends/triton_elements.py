"""Element streams in Triton: the AdamW update (A1-A6) and the sum of squared gradients, over the pointer table.

One program per chunk. Where all streams of a tensor start on 16 bytes, elements go in multiples of 16: then the mask
is constant over every 16-byte access, which is what the compiler needs to emit one. The few elements left over, and
chunks whose streams are not aligned, go one element per thread.
"""

import triton
import triton.language as tl

from greedylr_fused.control import SLOT
from greedylr_fused.formats import Hyper, Row

#: True if the functions below run in Triton's interpreter; fixed when Triton decorates them, at import.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

_PARAM, _GRAD = tl.constexpr(int(Row.PARAM)), tl.constexpr(int(Row.GRAD))
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(int(Row.EXP_AVG)), tl.constexpr(int(Row.EXP_AVG_SQ))
_MAX_EXP_AVG_SQ = tl.constexpr(int(Row.MAX_EXP_AVG_SQ))
_BETA1, _BETA2, _EPS = tl.constexpr(int(Hyper.BETA1)), tl.constexpr(int(Hyper.BETA2)), tl.constexpr(int(Hyper.EPS))
_WEIGHT_DECAY, _MAXIMIZE = tl.constexpr(int(Hyper.WEIGHT_DECAY)), tl.constexpr(int(Hyper.MAXIMIZE))
#: Elements that 16-byte accesses come in for every storage type; what is left of a tensor goes one by one.
_VECTOR = tl.constexpr(16)
_HYPERS = tl.constexpr(len(Hyper))
_SKIP, _GRAD_MULTIPLIER = tl.constexpr(SLOT["skip"]), tl.constexpr(SLOT["grad_multiplier"])
_LR = tl.constexpr(len(SLOT))


@triton.jit
def loop_bound(n):
    """`n` as the bound of a range: the interpreter of Triton 3.5 and 3.6 fails to convert it under numpy >= 2.4."""
    if INTERPRETED:
        return n.handle.data.item()
    return n


@triton.jit
def _address(ptrs, row, tensor, n_tensors):
    return tl.load(ptrs + row * n_tensors + tensor)


@triton.jit
def _stream(address, first, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to element `first` (int64) of the tensor at `address`."""
    if ALIGNED:
        # Changes nothing on the path taken for multiples of 16, but makes a value of its own that the hint holds for:
        # on the loaded address it would also reach the masked path, where it may be false.
        pointer = tl.multiple_of(((address >> 4) << 4).to(tl.pointer_type(DTYPE)), 16)
    else:
        pointer = address.to(tl.pointer_type(DTYPE))
    return pointer + first


@triton.jit
def _widen(x, T: tl.constexpr):
    if INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's own conversion loses subnormals
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(T)


@triton.jit
def _narrow(x, DTYPE: tl.constexpr):
    """Round once to the storage type: to nearest even, NaN and infinity stay."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # the interpreter's own conversion truncates
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def _power(beta, t):
    """beta^t for t >= 1 in float64; exact at t = 1, where 1 - beta^t cancels most."""
    return tl.where(t == 1, beta, tl.exp2(t * tl.log2(beta)))


@triton.jit
def _scalars(control, hyper, group, step, T: tl.constexpr):
    """What A1-A6 need besides the streams: float64 throughout, rounded to the op-math type at the end."""
    hyper += group * _HYPERS
    lr = tl.load(control + _LR + group)
    beta1, beta2 = tl.load(hyper + _BETA1), tl.load(hyper + _BETA2)
    t = step.to(tl.float64) + 1
    decay = 1 - lr * tl.load(hyper + _WEIGHT_DECAY)
    step_size = lr / (1 - _power(beta1, t))
    inv_bc2_sqrt = 1 / tl.sqrt(1 - _power(beta2, t))
    mult = tl.load(control + _GRAD_MULTIPLIER)
    mult = tl.where(tl.load(hyper + _MAXIMIZE) != 0, -mult, mult)
    # torch.lerp: m + w1 (g - m) for a small weight, else g - (1 - w1) (g - m). One base, one slope.
    from_m = 1 - beta1 < 0.5
    slope = tl.where(from_m, 1 - beta1, -beta1)
    eps = tl.load(hyper + _EPS)
    w2 = 1 - beta2
    return (
        from_m,
        mult.to(T),
        decay.to(T),
        slope.to(T),
        beta2.to(T),
        w2.to(T),
        inv_bc2_sqrt.to(T),
        eps.to(T),
        step_size.to(T),
    )


@triton.jit
def _adamw(p, g, m, v, v_max, scalars, AMSGRAD: tl.constexpr):
    """One element: (p, m, v, v_max) after the step, in the op-math type."""
    from_m, mult, decay, slope, beta2, w2, inv_bc2_sqrt, eps, step_size = scalars
    g = g * mult  # A1
    p = p * decay  # A2
    m = tl.where(from_m, m, g) + slope * (g - m)  # A3
    v = v * beta2 + w2 * g * g  # A4
    if AMSGRAD:  # A5
        v_max = tl.maximum(v_max, v, propagate_nan=tl.PropagateNan.ALL)
        u = v_max
    else:
        u = v
    if p.dtype == tl.float64:
        root = tl.sqrt(u)
    else:
        root = tl.sqrt_rn(u)  # tl.sqrt of float32 is an approximation on NVIDIA
    # `/` of float32 errs by up to 2 ulp of the update on NVIDIA (div.full), well below what the roundings before it
    # leave; tl.div_rn costs 13 instructions an element and the registers of its slow path.
    p = p - step_size * (m / (root * inv_bc2_sqrt + eps))  # A6
    return p, m, v, v_max


@triton.jit
def _update_span(
    streams,
    first,
    count,
    scalars,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    AMSGRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`count` elements of one tensor from `first` (int64) on, BLOCK at a time."""
    p_ptr = _stream(streams[0], first, P, ALIGNED)
    g_ptr = _stream(streams[1], first, G, ALIGNED)
    m_ptr = _stream(streams[2], first, S, ALIGNED)
    v_ptr = _stream(streams[3], first, S, ALIGNED)
    x_ptr = _stream(streams[4], first, S, ALIGNED)
    for offset in range(0, loop_bound(count), BLOCK):
        at = offset + tl.arange(0, BLOCK)
        mask = at < count
        p = _widen(tl.load(p_ptr + at, mask), T)
        g = _widen(tl.load(g_ptr + at, mask), T)
        m = _widen(tl.load(m_ptr + at, mask), T)
        v = _widen(tl.load(v_ptr + at, mask), T)
        v_max = v
        if AMSGRAD:
            v_max = _widen(tl.load(x_ptr + at, mask), T)
        p, m, v, v_max = _adamw(p, g, m, v, v_max, scalars, AMSGRAD)
        tl.store(p_ptr + at, _narrow(p, P), mask)
        tl.store(m_ptr + at, _narrow(m, S), mask)
        tl.store(v_ptr + at, _narrow(v, S), mask)
        if AMSGRAD:
            tl.store(x_ptr + at, _narrow(v_max, S), mask)


@triton.jit
def _chunk(numel, tensor, index, CHUNK: tl.constexpr):
    """First element (int64) and number of elements (int32) of chunk `index` of a tensor."""
    first = index.to(tl.int64) * CHUNK
    return first, tl.minimum(tl.load(numel + tensor) - first, CHUNK).to(tl.int32)


@triton.jit
def _whole(addresses, count):
    """How many of the first elements 16-byte accesses can take; `addresses`: those of all streams, or-ed."""
    return tl.where((addresses & 15) == 0, count // _VECTOR, 0) * _VECTOR


_UPDATE_ARGS = "ptrs numel group hyper steps chunk_tensor chunk_index control first_chunk n_tensors".split()


@triton.jit(do_not_specialize=_UPDATE_ARGS)
def update_kernel(
    ptrs,
    numel,
    group,
    hyper,
    steps,
    chunk_tensor,
    chunk_index,
    control,
    first_chunk,
    n_tensors,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
):
    """AdamW over chunk `first_chunk + program` of the table; P, G, S: types of parameter, gradient, moments."""
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    chunk = first_chunk + tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    g = _address(ptrs, _GRAD, tensor, n_tensors)
    if (g == 0) | (tl.load(control + _SKIP) != 0):
        return
    first, count = _chunk(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
    p = _address(ptrs, _PARAM, tensor, n_tensors)
    m = _address(ptrs, _EXP_AVG, tensor, n_tensors)
    v = _address(ptrs, _EXP_AVG_SQ, tensor, n_tensors)
    x = _address(ptrs, _MAX_EXP_AVG_SQ, tensor, n_tensors)
    scalars = _scalars(control, hyper, tl.load(group + tensor), tl.load(steps + tensor), T)
    whole = _whole(p | g | m | v | x, count)
    streams = (p, g, m, v, x)
    if x == 0:
        _update_span(streams, first, whole, scalars, P, G, S, T, False, True, BLOCK)
        _update_span(streams, first + whole, count - whole, scalars, P, G, S, T, False, False, TAIL)
    else:
        _update_span(streams, first, whole, scalars, P, G, S, T, True, True, BLOCK)
        _update_span(streams, first + whole, count - whole, scalars, P, G, S, T, True, False, TAIL)


@triton.jit
def _square_span(address, first, count, G: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of squares of `count` elements from `first` on, and 1 if a float64 one is not finite."""
    total = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    g_ptr = _stream(address, first, G, ALIGNED)
    for offset in range(0, loop_bound(count), BLOCK):
        at = offset + tl.arange(0, BLOCK)
        g = tl.load(g_ptr + at, at < count, other=0)
        if G != tl.float64:
            g = _widen(g, tl.float32)
        g = g.to(tl.float64)
        total += g * g
        if G == tl.float64:
            bad = tl.where(tl.abs(g) < float("inf"), bad, 1)
    return tl.sum(total), tl.max(bad)


_MEASURE_ARGS = "ptrs numel chunk_tensor chunk_index square_sums nonfinite first_chunk n_tensors".split()


@triton.jit(do_not_specialize=_MEASURE_ARGS)
def measure_kernel(
    ptrs,
    numel,
    chunk_tensor,
    chunk_index,
    square_sums,
    nonfinite,
    first_chunk,
    n_tensors,
    G: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Sum of squares (float64) and non-finite flag (int32) of the gradient in chunk `first_chunk + program`."""
    chunk = first_chunk + tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    g = _address(ptrs, _GRAD, tensor, n_tensors)
    first, count = _chunk(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
    count = tl.where(g == 0, 0, count)
    whole = _whole(g, count)
    square_sum, bad = _square_span(g, first, whole, G, True, BLOCK)
    tail_sum, tail_bad = _square_span(g, first + whole, count - whole, G, False, TAIL)
    square_sum += tail_sum
    if G == tl.float64:
        flag = bad | tail_bad
    else:  # squares of narrower types cannot overflow float64: the sum is finite if and only if every element is
        flag = tl.where(square_sum < float("inf"), 0, 1)
    tl.store(square_sums + chunk, square_sum)
    tl.store(nonfinite + chunk, flag)
