"""Mechanic in Triton: the factor S from what was measured (M1-M6), and the move of an element by it (M7-M9).

`backends/mechanic.py` specifies both. One thread stores, as `control.py` explains, and no barrier may be used here.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound, pointer
from greedylr_fused.backends.triton.slots import GROUPS, slots
from greedylr_fused.tensors import Hyper, Row

_BEGIN, _BETAS, _SCALE = slots("tuner_begin tuner_betas tuner_scale")
_GRAD_SQ_SUM, _GRAD_MULTIPLIER, _SKIP = slots("grad_sq_sum grad_multiplier skip")
_PARAM_SQ_SUM, _GRAD_MOVED_SUM, _PARAM_MOVED_SUM = slots("param_sq_sum grad_moved_sum param_moved_sum")
_WEIGHT_DECAY, _MAXIMIZE = tl.constexpr(int(Hyper.WEIGHT_DECAY)), tl.constexpr(int(Hyper.MAXIMIZE))
_DECAY_SLOPE = tl.constexpr(int(Hyper.DECAY_SLOPE))
_HYPERS, _WRITTEN_AT = tl.constexpr(len(Hyper)), tl.constexpr(int(Row.WRITTEN_AT))


@triton.jit
def _values(c):
    """Return a pointer to the tuner's values: s_decay, s_init, eps, and beta, s, m, v, r of the learners."""
    return c + tl.load(c + _BEGIN).to(tl.int64)


@triton.jit
def _sum_of_shares(s, n):
    total = tl.zeros((), tl.float64)
    for i in range(loop_bound(n)):
        total += tl.load(s + i)
    return total


@triton.jit
def _learn(values, n, h):
    """Let each learner take the product `h`."""
    init, eps = tl.load(values + 1), tl.load(values + 2)
    for i in range(loop_bound(n)):
        beta_at = values + 3 + i
        s_at, m_at, v_at, r_at = beta_at + n, beta_at + 2 * n, beta_at + 3 * n, beta_at + 4 * n
        beta, m = tl.load(beta_at), tl.load(m_at)
        above = tl.where(h > -m, h, -m)  # M3: by the m of the step before
        clipped = tl.where(above < m, above, m)
        faded, size = beta * m, tl.abs(h) + eps
        m = tl.where(faded > size, faded, size)  # M4
        v = beta * beta * tl.load(v_at) + h * h
        r = beta * tl.load(r_at) + clipped * tl.load(s_at)  # M5
        wealth = init / n * m + tl.where(r > 0, r, 0)
        tl.store(m_at, m)
        tl.store(v_at, v)
        tl.store(r_at, r)
        tl.store(s_at, wealth / (tl.sqrt(v) + eps))  # M6


@triton.jit
def run_tuner(c):
    """Take what was measured, after the clip; nothing changes in a step that is skipped."""
    if tl.load(c + _SKIP) == 0:
        values, n = _values(c), tl.load(c + _BETAS).to(tl.int32)
        multiplier, eps = tl.load(c + _GRAD_MULTIPLIER), tl.load(values + 2)
        grad_norm = tl.sqrt(tl.load(c + _GRAD_SQ_SUM)) * multiplier
        decay = tl.load(values) * _sum_of_shares(values + 3 + n, n) * grad_norm  # M1
        decay = decay / (tl.sqrt(tl.load(c + _PARAM_SQ_SUM)) + eps)
        h = multiplier * tl.load(c + _GRAD_MOVED_SUM) + decay * tl.load(c + _PARAM_MOVED_SUM)
        if tl.abs(h) < float("inf"):  # M2: one that is not finite teaches nothing
            _learn(values, n, h)
            tl.store(c + _SCALE, _sum_of_shares(values + 3 + n, n))


@triton.jit
def written_at(ptrs, tensor, n_tensors, mask=None):
    """Return a pointer to the S that wrote a tensor last (float64); of several tensors where `mask` is."""
    return pointer(tl.load(ptrs + _WRITTEN_AT * n_tensors + tensor, mask), tl.float64)


@triton.jit
def direction_weights(c, ptrs, hyper, group, tensor, n_tensors, weight):
    """Return the share of a tensor in the sums of gradient, and of parameter, times (x0 - x) / (S + eps), of which its
    elements have gradient, and parameter, times x0 - x. `weight`: of its squares.
    """
    weight /= tl.load(written_at(ptrs, tensor, n_tensors)) + tl.load(_values(c) + 2)
    follows = tl.load(hyper + tl.load(group + tensor) * _HYPERS + _MAXIMIZE) != 0
    return tl.where(follows, -weight, weight), weight


@triton.jit
def moves_of(c, hyper, group, before, T: tl.constexpr):
    """Return the scalars of a tensor's moves, of which the S `before` wrote it last: float64, rounded at the end."""
    scale = tl.load(c + _SCALE)
    lr, hyper = tl.load(c + GROUPS + group), hyper + group * _HYPERS
    decay = lr * (tl.load(hyper + _WEIGHT_DECAY) + lr * tl.load(hyper + _DECAY_SLOPE))
    rescale = 1 - scale / (before + tl.load(_values(c) + 2))
    return decay.to(T), rescale.to(T), scale.to(T)


@triton.jit
def move(p, offset, step, moves):
    """Return a parameter and its offset, x0 - x, after the step; `step`: what `adamw` makes of a parameter of 0."""
    decay, rescale, scale = moves
    update = step - decay * p  # M7
    by = rescale * offset + scale * update  # M8
    return p + by, offset - by  # M9
