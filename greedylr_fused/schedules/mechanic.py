"""Mechanic, a tuner: it learns by how much to scale the sum of all updates, whatever schedule they follow.

Source: Cutkosky, Defazio & Mehta, "Mechanic: A Learning Rate Tuner" (arXiv 2306.00144), Algorithm 1, in the form of
`optax.contrib.mechanize` 0.2.8, whose option `weight_decay` is `s_decay` here. Steps are tagged M1..M6;
`csrc/core/mechanic.h`, the Triton kernel and the reference backend carry the same tags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from greedylr_fused.schedules import checks

#: Base learning rates below this are warned of: the tuner would first have to make up for them.
LOW_LR = 1e-2


@dataclass(frozen=True, kw_only=True)
class Mechanic:
    """A factor S on the sum of all updates, learned from gradients: the LR need not be tuned, only its schedule chosen.

    A parameter is x = x0 - S * D, where x0 is what it started from and D the sum of the updates that AdamW made with
    the LR of the schedule, each with its weight decay, counted negative. S grows while the gradients agree with the
    way that the parameters have come. Pass it as `FusedAdamW(lr=1.0, schedule=Cosine(...), tuner=Mechanic())`: the LR
    is then a shape, with a peak of 1. S is decided on the device, from sums that are taken in the pass over the
    gradients that clipping makes, too; a skipped step changes nothing of it. `opt.metrics().tuner_scale` shows S. A
    tuned LR was better on every task that was measured (docs/methods.md).

    Args:
        s_init: the sum of all updates is scaled by this at first. > 0. Default: 1e-6.
        s_decay: strength of the decay that keeps S from running away, lambda in the paper, a share of the gradient's
            norm. It is no weight decay of the parameters. >= 0. Default: 0.01.
        betas: how long each of several learners of S remembers, whose sum is S; 1 to 16 numbers in (0, 1). Default:
            0.9, 0.99, ..., 0.999999.
        eps: > 0, added to what divides. Default: 1e-8.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    s_init: float = 1e-6
    s_decay: float = 0.01
    betas: Sequence[float] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, example in (("s_init", 1e-6), ("s_decay", 0.01), ("eps", 1e-8)):
            allowed = ">= 0" if name == "s_decay" else "> 0"
            value = checks.number(self, name, allowed=allowed, example=example)
            if value < 0 or (value == 0 and name != "s_decay"):
                checks.refuse(self, name, value, f"a number {allowed}", f"leave {name} out for its default")
        if not isinstance(self.betas, (list, tuple)) or not all(type(beta) in (int, float) for beta in self.betas):
            checks.mistype(self, "betas", self.betas, "a sequence of numbers", "leave betas out for its default")
        if not 1 <= len(self.betas) <= 16 or not all(0 < beta < 1 for beta in self.betas):
            checks.refuse(self, "betas", self.betas, "1 to 16 numbers between 0 and 1", "leave betas out")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))

    def numbers(self) -> list[float]:
        """Return the options as they stand in the control vector, before the learners' state: s_decay, s_init, eps,
        and each beta.
        """
        return [self.s_decay, self.s_init, self.eps, *self.betas]

    def start(self) -> list[float]:
        """Return the state of the learners before the first step: s, m, v and r of each."""
        n = len(self.betas)
        return [self.s_init] * n + [0.0] * 3 * n

    def scale(self, learners: Sequence[float]) -> float:
        """Return S of such a state of the learners."""
        return total(learners[: len(self.betas)])


def total(shares: Sequence[float]) -> float:
    """Return the sum, in this order and from 0, as every device form adds it up."""
    found = 0.0
    for share in shares:
        found += share
    return found


class MechanicSpec:
    """The learners of S on the host, over plain floats: every device form is tested against them.

    Args:
        config: the options.

    Attributes:
        s, m, v, r: of each learner: its share of S, the largest product so far, the sum of squares, the reward.
    """

    def __init__(self, config: Mechanic) -> None:
        self.config = config
        n = len(config.betas)
        self.s, self.m, self.v, self.r = [config.s_init] * n, [0.0] * n, [0.0] * n, [0.0] * n

    @property
    def scale(self) -> float:
        """Return S."""
        return total(self.s)

    def observe(self, grad_norm: float, param_norm: float, grad_moved: float, param_moved: float) -> float:
        """Take what was measured before an update; return the S that it is made with.

        Args:
            grad_norm: 2-norm of the gradients as the update uses them, unscaled and clipped.
            param_norm: 2-norm of the parameters before the update.
            grad_moved: inner product of these gradients with dp = (x0 - x) / (S + eps).
            param_moved: inner product of the parameters with dp.
        """
        config = self.config
        decay = config.s_decay * self.scale * grad_norm / (param_norm + config.eps)  # M1
        h = grad_moved + decay * param_moved  # M2: one that is not finite teaches nothing
        if not math.isfinite(h):
            return self.scale
        for i, beta in enumerate(config.betas):
            clipped = min(max(h, -self.m[i]), self.m[i])  # M3: by the m of the step before
            self.m[i] = max(beta * self.m[i], abs(h) + config.eps)  # M4
            self.v[i] = beta * beta * self.v[i] + h * h
            self.r[i] = beta * self.r[i] + clipped * self.s[i]  # M5
            wealth = config.s_init / len(config.betas) * self.m[i] + max(0.0, self.r[i])
            self.s[i] = wealth / (math.sqrt(self.v[i]) + config.eps)  # M6
        return self.scale
