"""One element's AdamW update in Triton (A1-A6), and what it needs besides the streams."""

import triton
import triton.language as tl

from greedylr_fused.control import SLOT
from greedylr_fused.tensors import Hyper

_BETA1, _BETA2, _EPS = tl.constexpr(int(Hyper.BETA1)), tl.constexpr(int(Hyper.BETA2)), tl.constexpr(int(Hyper.EPS))
_WEIGHT_DECAY, _MAXIMIZE = tl.constexpr(int(Hyper.WEIGHT_DECAY)), tl.constexpr(int(Hyper.MAXIMIZE))
_DECAY_SLOPE, _HYPERS = tl.constexpr(int(Hyper.DECAY_SLOPE)), tl.constexpr(len(Hyper))
_GRAD_MULTIPLIER = tl.constexpr(SLOT["grad_multiplier"])
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
def scalars_of(control, hyper, group, step, T: tl.constexpr):
    """Compute what A1-A6 need besides the streams: float64 throughout, rounded to the op-math type at the end."""
    hyper += group * _HYPERS
    lr = tl.load(control + _LR + group)
    beta1, beta2 = tl.load(hyper + _BETA1), tl.load(hyper + _BETA2)
    t = step.to(tl.float64) + 1
    decay = 1 - lr * (tl.load(hyper + _WEIGHT_DECAY) + lr * tl.load(hyper + _DECAY_SLOPE))
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
def adamw(p, g, m, v, v_max, scalars, AMSGRAD: tl.constexpr):
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
