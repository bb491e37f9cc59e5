"""AdamW for one tensor in plain torch operations: the readable form of what every backend computes.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101), algorithm 2, with the conventions of
`torch.optim.AdamW`: decay before the update, `eps` outside the square root, bias correction of both moments. Steps are
tagged A1..A6; `csrc/core/adamw.h` and the Triton kernel carry the same tags.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greedylr_fused.tensors import square_root


@dataclass(frozen=True)
class Scalars:
    """The 0-d tensors that the update of one tensor reads, in the op-math type, on the parameter's device.

    They are computed in float64 and rounded once. beta2 enters twice, as the factor of the old moment and in the bias
    correction; both come from the same float64 number.
    """

    grad_multiplier: Tensor
    decay: Tensor
    weight1: Tensor
    beta1: Tensor
    beta2: Tensor
    weight2: Tensor
    step_size: Tensor
    inv_bias_correction2_sqrt: Tensor
    eps: Tensor

    @classmethod
    def of(cls, hyper: Tensor, lr: Tensor, grad_multiplier: Tensor, step: Tensor, dtype: torch.dtype) -> Scalars:
        """Compute the scalars from a group's hyper-parameters (float64 [6]), its LR, the gradient multiplier and the
        number of this step, from 1 (float64 0-d each).
        """
        beta1, beta2, eps, weight_decay, maximize, decay_slope = hyper.unbind()
        values = (
            torch.where(maximize != 0, -grad_multiplier, grad_multiplier),
            1.0 - lr * (weight_decay + lr * decay_slope),
            1.0 - beta1,
            beta1,
            beta2,
            1.0 - beta2,
            lr / (1.0 - beta1**step),
            1.0 / torch.sqrt(1.0 - beta2**step),
            eps,
        )
        return cls(*(value.to(dtype) for value in values))


def adamw(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, max_exp_avg_sq: Tensor | None, s: Scalars
) -> tuple[Tensor, ...]:
    """Compute one update in the op-math type (float64 for float64 parameters, otherwise float32).

    All tensors have one shape and are already in the op-math type. Returns the new `(param, exp_avg, exp_avg_sq)` and
    with amsgrad `max_exp_avg_sq`; nothing is written in place.
    """
    g = grad * s.grad_multiplier  # A1: unscale and clip; negated to maximize
    p = param * s.decay  # A2: decoupled weight decay
    near = exp_avg + s.weight1 * (g - exp_avg)
    m = torch.where(s.weight1 < 0.5, near, g - (g - exp_avg) * s.beta1)  # A3: torch.lerp
    v = exp_avg_sq * s.beta2 + s.weight2 * g * g  # A4: not a lerp, so that an overflowed moment stays inf
    largest = None if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq, v)  # NaN propagates
    denom = square_root(v if largest is None else largest) * s.inv_bias_correction2_sqrt + s.eps  # A5
    p = p - s.step_size * (m / denom)  # A6
    return (p, m, v) if largest is None else (p, m, v, largest)
