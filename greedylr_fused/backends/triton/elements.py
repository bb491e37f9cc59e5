"""The AdamW update in Triton (A1-A6) over the pointer table, one program per chunk; the last program of the step's last
launch closes the step.

It is compiled without contraction: the close is float64 that must round as Python does, and the elements lose no time
by it, since memory is their limit.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import (
    address,
    body_of,
    chunk_of,
    head_of,
    kernel,
    last_to_finish,
    loop_bound,
    misaligned,
    narrow,
    pointer,
    step_count,
    wide,
    widen,
)
from greedylr_fused.backends.triton.control import run_control
from greedylr_fused.control import SLOT
from greedylr_fused.tensors import Hyper, Row

_PARAM, _GRAD = tl.constexpr(int(Row.PARAM)), tl.constexpr(int(Row.GRAD))
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(int(Row.EXP_AVG)), tl.constexpr(int(Row.EXP_AVG_SQ))
_MAX_EXP_AVG_SQ = tl.constexpr(int(Row.MAX_EXP_AVG_SQ))
_BETA1, _BETA2, _EPS = tl.constexpr(int(Hyper.BETA1)), tl.constexpr(int(Hyper.BETA2)), tl.constexpr(int(Hyper.EPS))
_WEIGHT_DECAY, _MAXIMIZE = tl.constexpr(int(Hyper.WEIGHT_DECAY)), tl.constexpr(int(Hyper.MAXIMIZE))
_HYPERS = tl.constexpr(len(Hyper))
_SKIP, _GRAD_MULTIPLIER = tl.constexpr(SLOT["skip"]), tl.constexpr(SLOT["grad_multiplier"])
_LR = tl.constexpr(len(SLOT))  # the first of the blocks


@triton.jit
def _bias_corrections(betas, t):
    """Return 1 - beta^t, t >= 1, in float64 for both betas, which lie next to each other; exact at t = 1, where it
    cancels most.

    Every thread computes the power of one beta and takes the other from its neighbour: the two powers are most of what
    a program does before its loop, and with thousands of tiny tensors most of what it does.
    """
    which = tl.arange(0, 2)
    beta = tl.load(betas + which)
    correction = 1 - tl.where(t == 1, beta, tl.exp2(t * tl.log2(beta)))
    return tl.sum(tl.where(which == 0, correction, 0)), tl.sum(tl.where(which == 1, correction, 0))


@triton.jit
def _scalars(control, hyper, group, step, T: tl.constexpr):
    """Compute what A1-A6 need besides the streams: float64 throughout, rounded to the op-math type at the end."""
    hyper += group * _HYPERS
    lr = tl.load(control + _LR + group)
    beta1, beta2 = tl.load(hyper + _BETA1), tl.load(hyper + _BETA2)
    t = step.to(tl.float64) + 1
    decay = 1 - lr * tl.load(hyper + _WEIGHT_DECAY)
    bias_correction1, bias_correction2 = _bias_corrections(hyper + _BETA1, t)
    step_size = lr / bias_correction1
    inv_bias_correction2_sqrt = 1 / tl.sqrt(bias_correction2)
    grad_multiplier = tl.load(control + _GRAD_MULTIPLIER)
    grad_multiplier = tl.where(tl.load(hyper + _MAXIMIZE) != 0, -grad_multiplier, grad_multiplier)
    # torch.lerp: m + weight1 (g - m) for a small weight, else g - (1 - weight1) (g - m). One base, one lerp_slope.
    from_old = 1 - beta1 < 0.5
    lerp_slope = tl.where(from_old, 1 - beta1, -beta1)
    eps = tl.load(hyper + _EPS)
    weight2 = 1 - beta2
    return (
        from_old,
        grad_multiplier.to(T),
        decay.to(T),
        lerp_slope.to(T),
        beta2.to(T),
        weight2.to(T),
        inv_bias_correction2_sqrt.to(T),
        eps.to(T),
        step_size.to(T),
    )


@triton.jit
def _adamw(p, g, m, v, v_max, scalars, AMSGRAD: tl.constexpr):
    """Return (p, m, v, v_max) of one element after the step, in the op-math type."""
    from_old, grad_multiplier, decay, lerp_slope, beta2, weight2, inv_bias_correction2_sqrt, eps, step_size = scalars
    g = g * grad_multiplier  # A1
    p = p * decay  # A2
    m = tl.where(from_old, m, g) + lerp_slope * (g - m)  # A3
    v = v * beta2 + weight2 * g * g  # A4
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
    p = p - step_size * (m / (root * inv_bias_correction2_sqrt + eps))  # A6
    return p, m, v, v_max


@triton.jit
def _update_at(streams, at, mask, scalars, P: tl.constexpr, S: tl.constexpr, T: tl.constexpr, AMSGRAD: tl.constexpr):
    """Update the elements `at` (int32) of one span; `mask` None: all of them."""
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr = streams
    p = widen(tl.load(p_ptr + at, mask), T)
    g = widen(tl.load(g_ptr + at, mask), T)
    m = widen(tl.load(m_ptr + at, mask), T)
    v = widen(tl.load(v_ptr + at, mask), T)
    v_max = v
    if AMSGRAD:
        v_max = widen(tl.load(x_ptr + at, mask), T)
    p, m, v, v_max = _adamw(p, g, m, v, v_max, scalars, AMSGRAD)
    tl.store(p_ptr + at, narrow(p, P), mask)
    tl.store(m_ptr + at, narrow(m, S), mask)
    tl.store(v_ptr + at, narrow(v, S), mask)
    if AMSGRAD:
        tl.store(x_ptr + at, narrow(v_max, S), mask)


@triton.jit
def _start(ptrs, row, tensor, n_tensors, first, DTYPE: tl.constexpr):
    start = address(ptrs, row, tensor, n_tensors)
    return tl.where(start == 0, 0, start + first * (DTYPE.primitive_bitwidth // 8))


@triton.jit
def _starts(ptrs, tensor, n_tensors, first, P: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """Return the addresses of element `first` of all streams, 0 for a stream that the tensor does not have."""
    return (
        _start(ptrs, _PARAM, tensor, n_tensors, first, P),
        _start(ptrs, _GRAD, tensor, n_tensors, first, G),
        _start(ptrs, _EXP_AVG, tensor, n_tensors, first, S),
        _start(ptrs, _EXP_AVG_SQ, tensor, n_tensors, first, S),
        _start(ptrs, _MAX_EXP_AVG_SQ, tensor, n_tensors, first, S),
    )


@triton.jit
def _body(starts, count, P: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """Return the first element of the body and its length. The narrowest stream says where 16 bytes begin; unless all
    others agree, there is no body.
    """
    p, g, m, v, x = starts
    if P.primitive_bitwidth <= G.primitive_bitwidth and P.primitive_bitwidth <= S.primitive_bitwidth:
        head = head_of(p, P)
    elif G.primitive_bitwidth <= S.primitive_bitwidth:
        head = head_of(g, G)
    else:
        head = head_of(m, S)
    odd = misaligned(p, head, P) | misaligned(g, head, G)
    odd |= misaligned(m, head, S) | misaligned(v, head, S) | misaligned(x, head, S)
    return body_of(head, odd, count)


@triton.jit
def _update_chunk(
    starts,
    begin,
    body,
    count,
    scalars,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    AMSGRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Update `count` elements from the addresses `starts` on, in wide accesses the `body` from element `begin` on."""
    p, g, m, v, x = starts
    streams = (pointer(p, P), pointer(g, G), pointer(m, S), pointer(v, S), pointer(x, S))
    for offset in range(0, loop_bound(count - body), REST):
        at = offset + tl.arange(0, REST)
        mask = at < count - body
        _update_at(streams, tl.where(at < begin, at, at + body), mask, scalars, P, S, T, AMSGRAD)
    # The body last: the loop that matters then keeps no register for what comes after it.
    streams = (wide(p, begin, P), wide(g, begin, G), wide(m, begin, S), wide(v, begin, S), wide(x, begin, S))
    part = tl.multiple_of(body % BLOCK, 8)
    if part != 0:
        at = tl.arange(0, BLOCK)
        _update_at(streams, at, at < part, scalars, P, S, T, AMSGRAD)
    for offset in range(0, loop_bound(body - part), BLOCK):
        _update_at(streams, part + offset + tl.arange(0, BLOCK), None, scalars, P, S, T, AMSGRAD)


@kernel
def update_kernel(
    ptrs,
    numel,
    chunk_tensor,
    chunk_index,
    control,
    first_chunk,
    group,
    hyper,
    curve,
    snapshot,
    n_tensors,
    others,
    n_others,
    counter,
    loss,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    CLOSES: tl.constexpr,
    HAS_LOSS: tl.constexpr,
):
    """Update chunk `first_chunk + program` of the table; P, G, S: types of parameter, gradient, moments.

    The step of a tensor of one chunk is counted here, that of the `others` at the end of the launch that CLOSES it.
    """
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    chunk = first_chunk + tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    if (address(ptrs, _GRAD, tensor, n_tensors) != 0) & (tl.load(control + _SKIP) == 0):
        first, count, alone = chunk_of(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
        starts = _starts(ptrs, tensor, n_tensors, first, P, G, S)
        taken = step_count(ptrs, tensor, n_tensors)
        steps_taken = tl.load(taken)
        scalars = _scalars(control, hyper, tl.load(group + tensor), steps_taken, T)
        if alone:
            tl.debug_barrier()  # every thread has read the count
            tl.store(taken, steps_taken + 1)
        begin, body = _body(starts, count, P, G, S)
        if starts[4] == 0:
            _update_chunk(starts, begin, body, count, scalars, P, G, S, T, False, BLOCK, REST)
        else:
            _update_chunk(starts, begin, body, count, scalars, P, G, S, T, True, BLOCK, REST)
    if CLOSES:
        if last_to_finish(counter, tl.num_programs(0)):
            run_control(control, curve, snapshot, ptrs, n_tensors, others, n_others, loss, HAS_LOSS)
