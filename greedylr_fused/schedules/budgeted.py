"""Schedules made for a known budget of steps: REX and UBA, two members of one family x / (x + k (1 - x)).

x falls from 1 to 0 along a line (REX) or a cosine (UBA), and k bends it: k = 1 leaves it as it is, less keeps the LR
near the peak for longer, more lets it fall early.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import Annealed


def bend(x: float, k: float) -> float:
    """Return x / (x + k (1 - x)): for every k > 0 it is 1 at x = 1 and 0 at x = 0; for k = 1 it is x, to the bit."""
    return x / (x + k * (1.0 - x)) if x else 0.0  # k may be so small that it has underflowed to 0


@dataclass(frozen=True, kw_only=True)
class REX(Annealed):
    """Reflected exponential: stays near the peak and falls ever faster.

    Source: Chen, Wolfe & Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (arXiv 2107.04197),
    read in its implementations (pytorch_optimizer 4.1.0): f = z / ((1 - d) + d z), z = 1 - t / T.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, at most `total_steps`; t and T count from its end. Default: 0.
        min_lr_ratio: the end as a ratio of the peak, in [0, 1]. Default: 0.0.
        d: 0 is `Linear`, to the bit; the larger, the longer it stays near the peak: 0.9 is common in LoRA trainers. In
            [0, 1). Default: 0.5.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    d: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= checks.number(self, "d", allowed="0 <= d < 1", example=0.5) < 1.0:
            checks.refuse(self, "d", self.d, "0 <= d < 1", "write d=0.5, the paper's, or d=0 for a straight line")

    def shape(self, steps: int) -> Iterator[float]:
        """Return the line, bent with k = 1 - d."""
        k = 1.0 - self.d
        return (bend((steps - n) / steps, k) for n in range(steps + 1))


@dataclass(frozen=True, kw_only=True)
class UBA(Annealed):
    """Unified budget-aware schedule: one parameter from a constant to an early fall, the cosine in between.

    Source: "Stepsize anything: A unified learning rate schedule for budgeted-iteration training" (arXiv 2505.24452),
    whose abstract and public implementations could be read, not its text:
    f = 2 (1 + cos th) / (2 phi + (2 - phi)(1 + cos th)) with th = pi t / T, here as c / (c + phi / 2 (1 - c)) with
    c = (1 + cos th) / 2, which is the same without 0 / 0 near the end. No phi is recommended in what could be read.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, at most `total_steps`; t and T count from its end. Default: 0.
        min_lr_ratio: the end as a ratio of the peak, in [0, 1]. Default: 0.0.
        phi: at half of the budget f is 1 / (1 + phi / 2): towards 0 a constant, at 2 `Cosine`, to the bit, above 2 f
            falls earlier than that. > 0. No default.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    phi: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if checks.number(self, "phi", allowed="> 0", example=2.0, default=False) <= 0:
            checks.refuse(
                self, "phi", self.phi, "a number > 0", "write phi=2.0 for a cosine, or use Constant for no decay"
            )

    def shape(self, steps: int) -> Iterator[float]:
        """Return the cosine, bent with k = phi / 2."""
        k = self.phi / 2.0
        return (bend(0.5 * (1.0 + math.cos(math.pi * (n / steps))), k) for n in range(steps + 1))
