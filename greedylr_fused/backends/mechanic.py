"""Mechanic in plain torch operations: the readable form of what every backend computes between measurement and update.

Cutkosky et al., "Mechanic: A Learning Rate Tuner" (arXiv 2306.00144), in optax's form; `schedules/mechanic.py` has it
in plain floats. Steps are tagged M1..M6 (the factor S) and M7..M9 (one tensor); `csrc/core/mechanic.h` and the Triton
kernel carry the same tags. A parameter is x = x0 - S * D. What is kept of it is its offset x0 - x, so that both the
direction (x0 - x) / (S + eps) and the parameter itself are known without rounding one from the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Learners:
    """The tuner's part of a control vector, by name; see `Tuned`.

    Args:
        vector: the control vector.
        begin: where the tuner's values begin in it.
        n: learners.

    Attributes:
        decay, init, eps: 0-d views; `beta`, `s`, `m`, `v`, `r`: [n] views.
    """

    def __init__(self, vector: Tensor, begin: int, n: int) -> None:
        self.n = n
        self.decay, self.init, self.eps = vector[begin : begin + 3].unbind()
        self.beta, self.s, self.m, self.v, self.r = vector[begin + 3 : begin + 3 + 5 * n].view(5, n).unbind()

    def scale(self) -> Tensor:
        """Return S, the sum of all s, added up in their order."""
        total = torch.zeros_like(self.decay)
        for share in self.s.unbind():
            total = total + share
        return total

    def observe(self, norms: tuple[Tensor, Tensor], moved: tuple[Tensor, Tensor], active: Tensor) -> None:
        """Take what was measured before an update.

        Args:
            norms: of the gradients as the update uses them, and of the parameters.
            moved: inner products of both with the direction.
            active: whether there is an update; nothing changes without one.
        """
        grad_norm, param_norm = norms
        decay = self.decay * self.scale() * grad_norm / (param_norm + self.eps)  # M1
        h = moved[0] + decay * moved[1]  # M2: one that is not finite teaches nothing
        active = active & torch.isfinite(h)
        clipped = torch.minimum(torch.maximum(h, -self.m), self.m)  # M3: by the m of the step before
        m = torch.maximum(self.beta * self.m, h.abs() + self.eps)  # M4
        v = self.beta * self.beta * self.v + h * h
        r = self.beta * self.r + clipped * self.s  # M5
        wealth = self.init / self.n * m + torch.clamp(r, min=0.0)
        s = wealth / (torch.sqrt(v) + self.eps)  # M6
        for old, new in ((self.m, m), (self.v, v), (self.r, r), (self.s, s)):
            old.copy_(torch.where(active, new, old))


@dataclass(frozen=True)
class Moves:
    """The 0-d tensors that the move of one tensor reads, computed in float64 and rounded once to the op-math type."""

    decay: Tensor
    rescale: Tensor
    scale: Tensor

    @classmethod
    def of(
        cls, lr: Tensor, weight_decay: Tensor, scale: Tensor, written_at: Tensor, eps: Tensor, dtype: torch.dtype
    ) -> Moves:
        """Compute them from the group's LR and weight decay, S, the S that wrote the tensor last, and the tuner's eps
        (float64 0-d each).
        """
        values = (lr * weight_decay, 1.0 - scale / (written_at + eps), scale)
        return cls(*(value.to(dtype) for value in values))


def moved(param: Tensor, offset: Tensor, step: Tensor, by: Moves) -> tuple[Tensor, Tensor]:
    """Return the new parameter and its new offset.

    Args:
        param: in the op-math type.
        offset: the same, x0 - x.
        step: what A1..A6 make of a parameter of 0, the update without weight decay.
        by: the scalars.
    """
    update = step - by.decay * param  # M7: with the weight decay, which is relative to the parameter
    move = by.rescale * offset + by.scale * update  # M8: x0 - S * ((x0 - x) / (S' + eps) - update) - x
    return param + move, offset - move  # M9
