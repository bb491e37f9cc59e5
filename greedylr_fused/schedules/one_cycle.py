"""The 1cycle policy: up, and down to far below the start (Smith & Topin, "Super-Convergence", arXiv 1708.07120)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import StepSchedule

STRATEGIES = ("cos", "linear")


@dataclass(frozen=True, kw_only=True)
class OneCycle(StepSchedule):
    """A rise from peak / div_factor to the peak, and a fall to peak / div_factor / final_div_factor.

    Only the LR is cycled: betas stay as they are, which in torch is `cycle_momentum=False`, not the default. Options
    set start and end, so there is no `warmup_steps` and no `min_lr_ratio`. The optimizer's `lr` is
    the peak, torch's `max_lr`.

    Source: the LRs of `torch.optim.lr_scheduler.OneCycleLR` (torch 2.13): bit-equal for a peak of 1.0, and for others
    up to rounding, as torch computes with absolute LRs. Past the end torch raises, and here the last value stays.
    Where the rise ends at step 0 (`pct_start * total_steps` is 1) torch divides zero by zero, and here the run starts
    at the peak.

    Args:
        total_steps: length of the run in steps. In [1, 2**25].
        pct_start: the share of the run that the rise takes: it ends at step `pct_start * total_steps - 1`. In [0, 1],
            with `three_phase` in [0, 0.5]. Default: 0.3.
        anneal_strategy: "cos" or "linear". Default: "cos".
        div_factor: the peak divided by the LR at the start. >= 1. Default: 25.0.
        final_div_factor: the LR at the start divided by that at the end. At least 1 / `div_factor`, so that the end is
            not above the peak. Default: 10000.0.
        three_phase: fall back to the start as fast as the rise, and then on to the end, instead of falling to the end
            in one go. Default: False.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    total_steps: int = field(kw_only=False)
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        checks.whole(self, "total_steps", least=1)
        checks.choice(self, "anneal_strategy", STRATEGIES)
        if not isinstance(self.three_phase, bool):
            checks.mistype(self, "three_phase", self.three_phase, "True or False", "write three_phase=True")
        allowed = "0 <= pct_start <= 0.5 with three_phase" if self.three_phase else "0 <= pct_start <= 1"
        if not 0 <= checks.number(self, "pct_start", allowed=allowed, example=0.3) <= (0.5 if self.three_phase else 1):
            checks.refuse(self, "pct_start", self.pct_start, allowed, "write pct_start=0.3")
        if checks.number(self, "div_factor", allowed=">= 1", example=25.0) < 1:
            checks.refuse(
                self, "div_factor", self.div_factor, "a number >= 1", "write div_factor=25.0, or 1 to start at the peak"
            )
        allowed = f"at least 1 / div_factor, {1 / self.div_factor:g}"
        final = checks.number(self, "final_div_factor", allowed=allowed, example=1e4)
        if not self.div_factor * final >= 1:
            checks.refuse(self, "final_div_factor", final, allowed, "write a larger one to end below the peak")

    def curve(self) -> array[float]:
        """Return the cycle: `total_steps` values, of which the last is 1 / div_factor / final_div_factor."""
        start = 1.0 / self.div_factor
        end = start / self.final_div_factor
        phases = [(self.pct_start * self.total_steps - 1, start, 1.0)]  # last step, first and last ratio
        if self.three_phase:
            phases += [(2 * self.pct_start * self.total_steps - 2, 1.0, start), (self.total_steps - 1, start, end)]
        else:
            phases += [(self.total_steps - 1, 1.0, end)]
        values, begin = array("d"), 0.0
        for last, low, high in phases:  # a phase that ends before step 0 or before the last one has no step
            values.extend(self._phase(range(len(values), math.floor(last) + 1), begin, last, low, high))
            begin = last
        return values

    def _phase(self, steps: range, begin: float, last: float, start: float, end: float) -> Iterator[float]:
        """Yield ratios from `start` to `end`, in torch's order of operations; a phase of no length is at its end."""
        for n in steps:
            done = (n - begin) / (last - begin) if last > begin else 1.0
            if self.anneal_strategy == "cos":
                yield end + (start - end) / 2.0 * (math.cos(math.pi * done) + 1)
            else:
                yield (end - start) * done + start
