"""Step schedules: learning rates that depend on the step alone, as a table that the device reads by step index.

The table is computed here, once, in float64 and in the order of operations of `transformers.optimization` 5.17 where
that has the schedule, so every backend uses the bits of the Python formula, and no transcendental function is left to
a device whose `cos` rounds differently. Step t, counted from 0, uses `peak * curve()[t]`, which is what
`torch.optim.lr_scheduler.LambdaLR` gives when `scheduler.step()` follows every `optimizer.step()`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from greedylr_fused.schedules import checks


class StepSchedule:
    """Base of all schedules that depend on the step alone: frozen dataclasses, compared and hashed by value.

    The peak is the LR that the optimizer was constructed with, per group. A schedule knows ratios of it only, so one
    schedule serves every group.
    """

    def curve(self) -> array[float]:
        """Return the LR as a ratio of the peak: typecode "d", one value or more, one per step; the last stays."""
        raise NotImplementedError


def warm_up(steps: int) -> Iterator[float]:
    """Return the `steps` ratios of a linear warm-up, n / steps from 0, as in transformers: step 0 has an LR of 0."""
    return (n / steps for n in range(steps))


def check_warmup(schedule: StepSchedule) -> None:
    """Refuse a warm-up that is no number of steps."""
    checks.whole(schedule, "warmup_steps", least=0)


def check_cycles(schedule: StepSchedule) -> None:
    """Refuse a number of waves that is not above 0, or above the largest number of steps."""
    cycles = checks.number(schedule, "num_cycles", allowed="> 0", example=0.5)
    if not 0 < cycles <= checks.MAX_STEPS:
        remedy = "write num_cycles=0.5 to fall once, from the peak to the floor"
        checks.refuse(schedule, "num_cycles", cycles, f"0 < num_cycles <= {checks.MAX_STEPS}", remedy)


def check_floor(schedule: StepSchedule) -> None:
    """Refuse a floor that is no ratio of the peak."""
    floor = checks.number(schedule, "min_lr_ratio", allowed="0 <= min_lr_ratio <= 1", example=0.1)
    if not 0.0 <= floor <= 1.0:
        remedy = "divide the floor by the peak LR, or leave it out for 0"
        checks.refuse(schedule, "min_lr_ratio", floor, "a ratio of the peak LR, 0 <= min_lr_ratio <= 1", remedy)


@dataclass(frozen=True, kw_only=True)
class Constant(StepSchedule):
    """The peak LR, after an optional linear warm-up.

    Source: bit-equal to `transformers.get_constant_schedule_with_warmup` 5.17.

    Args:
        warmup_steps: the LR of step n < warmup_steps is peak * n / warmup_steps, so that of step 0 is 0. In
            [0, 2**25]. Default: 0.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_warmup(self)

    def curve(self) -> array[float]:
        """Return the warm-up and then 1.0: `warmup_steps + 1` values."""
        return array("d", [*warm_up(self.warmup_steps), 1.0])


@dataclass(frozen=True, kw_only=True)
class Annealed(StepSchedule):
    """Base of the schedules of a fixed length: a linear warm-up, then `shape()` between the floor and the peak.

    Step `total_steps`, the first after the run, and all later ones have the last value. A run that is all warm-up goes
    on at the floor.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: as in `Constant`, at most `total_steps`. Default: 0.
        min_lr_ratio: the floor as a ratio of the peak, in [0, 1]: a shape s becomes `s * (1 - r) + r`. The warm-up
            starts from 0 all the same, as in transformers. Default: 0.0.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    total_steps: int = field(kw_only=False)
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        checks.whole(self, "total_steps", least=1)
        check_warmup(self)
        if self.warmup_steps > self.total_steps:
            allowed = f"at most total_steps={self.total_steps}, which counts the warm-up too"
            checks.refuse(self, "warmup_steps", self.warmup_steps, allowed, "shorten the warm-up")
        check_floor(self)

    def shape(self, steps: int) -> Iterator[float]:
        """Return what is left of the way from the floor to the peak, in [0, 1], after the warm-up: `steps + 1` values.

        Args:
            steps: from the end of the warm-up to the end of the run. >= 1.
        """
        raise NotImplementedError

    def curve(self) -> array[float]:
        """Return the warm-up, then the shape, lifted to the floor: `total_steps + 1` values."""
        floor, span = self.min_lr_ratio, 1.0 - self.min_lr_ratio
        steps = self.total_steps - self.warmup_steps
        values = array("d", warm_up(self.warmup_steps))
        values.extend(height * span + floor for height in (self.shape(steps) if steps else (0.0,)))
        return values


@dataclass(frozen=True, kw_only=True)
class Linear(Annealed):
    """A straight line from the peak to the floor.

    It is the best schedule for the last iterate of SGD in the worst convex case (Defazio et al., "Optimal Linear Decay
    Learning Rate Schedules and Further Refinements", arXiv 2310.07831).

    Source: bit-equal to `transformers.get_linear_schedule_with_warmup` 5.17 (which has no floor).

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, at most `total_steps`. Default: 0.
        min_lr_ratio: where the line ends, as a ratio of the peak, in [0, 1]. Default: 0.0.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    def shape(self, steps: int) -> Iterator[float]:
        """Return (steps - n) / steps for n from 0 to `steps`."""
        return ((steps - n) / steps for n in range(steps + 1))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Annealed):
    """A power of the straight line from the peak to the floor.

    Source: `transformers.get_polynomial_decay_schedule_with_warmup` 5.17, with `min_lr_ratio` for its absolute
    `lr_end` (whose default is 1e-7): bit-equal for a peak of 1.0. For other peaks upstream multiplies by the peak and
    divides by it again, so that its LRs differ from these by rounding, a few units in the last place. Without a
    floor this is also `torch.optim.lr_scheduler.PolynomialLR`.

    Args:
        total_steps: length of the run in steps, warm-up included. In [1, 2**25].
        warmup_steps: steps of a linear warm-up from 0, at most `total_steps`. Default: 0.
        min_lr_ratio: the end as a ratio of the peak, in [0, 1]. Default: 0.0.
        power: 1 is `Linear`; above 1 the LR falls early, below 1 late. > 0. Default: 1.0.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option has the wrong type.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if checks.number(self, "power", allowed="> 0", example=1.0) <= 0:
            checks.refuse(self, "power", self.power, "a number > 0", "write power=1.0, or use Constant for no decay")

    def shape(self, steps: int) -> Iterator[float]:
        """Return (1 - n / steps) ** power for n from 0 to `steps`."""
        return ((1 - n / steps) ** self.power for n in range(steps + 1))
