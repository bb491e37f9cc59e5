"""Cosine annealing, once or with restarts (Loshchilov & Hutter, "SGDR", arXiv 1608.03983)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import Annealed, check_cycles


@dataclass(frozen=True, kw_only=True)
class Cosine(Annealed):
    """Half a wave of a cosine from the peak to the floor, or as many waves as are asked for.

    After the end the last value stays; `transformers` goes on along the wave there, and up again.

    Source: bit-equal to `transformers.get_cosine_schedule_with_warmup` 5.17 and, with a floor, to
    `get_cosine_with_min_lr_schedule_with_warmup`, whose `min_lr_rate` is `min_lr_ratio` here.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, at most `total_steps`. Default: 0.
        min_lr_ratio: the lowest point of the wave as a ratio of the peak, in [0, 1]. Default: 0.0.
        num_cycles: waves; 0.5 falls once, 1.0 comes back to the peak, whole numbers end there. In (0, 2**25].
            Default: 0.5.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    num_cycles: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cycles(self)

    def shape(self, steps: int) -> Iterator[float]:
        """Return (1 + cos(2 pi cycles n / steps)) / 2 for n from 0 to `steps`."""
        frequency = math.pi * self.num_cycles * 2.0
        return (0.5 * (1.0 + math.cos(frequency * (n / steps))) for n in range(steps + 1))


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(Annealed):
    """Repeated falls along half a cosine, each after a jump back to the peak; the run ends at the floor.

    Either `num_cycles` falls of equal length share the run, or the first one takes `first_steps` and each other one
    `mult` times as long as the one before, in which case the end of the run may cut the last one short.

    Source: with `num_cycles` bit-equal to `transformers.get_cosine_with_hard_restarts_schedule_with_warmup` 5.17
    (which has no floor). With `first_steps` and `mult` the LRs that
    `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts` (torch 2.13) has with `T_0` and `T_mult`, for all steps of
    the run: bit-equal for a peak of 1.0, and for others up to rounding, as torch computes with absolute LRs.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, before the first fall, at most `total_steps`. Default: 0.
        min_lr_ratio: where each fall ends, as a ratio of the peak, in [0, 1]. Default: 0.0.
        num_cycles: falls of equal length, in [1, 2**25]. Default: 1.
        first_steps: length of the first fall in steps, in [1, 2**25], instead of `num_cycles`. Default: None.
        mult: how many times as long each fall is as the one before, a whole number in [1, 2**25]; needs
            `first_steps`. Default: 1.

    Raises:
        ValueError: an option is outside its range, or those of both forms are mixed.
        TypeError: an option has the wrong type.
    """

    num_cycles: int = 1
    first_steps: int | None = None
    mult: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(self, "num_cycles", least=1)
        checks.whole(self, "mult", least=1)
        if self.first_steps is not None:
            checks.whole(self, "first_steps", least=1)
            if self.num_cycles != 1:
                allowed = f"no num_cycles beside first_steps={self.first_steps}"
                checks.refuse(self, "num_cycles", self.num_cycles, allowed, "leave one of the two out")
        elif self.mult != 1:
            checks.refuse(self, "mult", self.mult, "1 without first_steps", "write first_steps= as well")

    def shape(self, steps: int) -> Iterator[float]:
        """Yield (1 + cos(pi c)) / 2, c in [0, 1) being the share of the fall that is done at a step; 0 at the end."""
        if self.first_steps is not None:
            yield from self._growing(self.first_steps, steps)
        else:
            for n in range(steps):
                yield 0.5 * (1.0 + math.cos(math.pi * ((self.num_cycles * (n / steps)) % 1.0)))
        yield 0.0

    def _growing(self, length: int, steps: int) -> Iterator[float]:
        done = 0
        for _ in range(steps):
            yield 0.5 * (1.0 + math.cos(math.pi * done / length))
            done += 1
            if done == length:
                done, length = 0, length * self.mult
