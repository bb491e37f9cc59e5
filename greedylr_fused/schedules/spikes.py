"""Which steps are skipped as spikes: the configuration, and the rule in plain Python floats.

The rule is that of OLMo-core's `SkipStepOptimizer` and of Levanter's `SkipStepConfig`, whose option names are kept,
with what they leave open said here. Steps are tagged K1..K4; `csrc/core/spikes.h`, `backends/triton/spikes.py` and
`backends/spikes.py` carry the same tags, and are tested against this file bit for bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from greedylr_fused.schedules import checks

#: Values that a ring may hold. Each step goes through all of them, and a checkpoint keeps them.
MAX_INTERVAL = 1024
#: Sums over a ring have one order: every 32nd value, the oldest first, and then these sums in pairs of neighbours. So
#: many threads add them up as fast as they are read, and all backends get the same bits.
LANES = 32


class Skip(IntEnum):
    """Whether a step is skipped, and why (`csrc/core/slots.h`): a gradient that is not finite comes before a spike."""

    NONE = 0
    NONFINITE = 1
    SPIKE = 2


@dataclass(frozen=True, kw_only=True)
class SkipSpikes:
    """Skip a step whose loss or gradient norm is a spike, that is, far above those of the steps before.

    Pass it as `FusedAdamW(..., skip_spikes=SkipSpikes())`. A spike is a value that is larger than mean + `sigma_factor`
    deviations of the last `rolling_interval_length` values, itself not among them (of a loss that the schedule is to
    maximise, `mode="max"`, smaller than mean - ...). Loss and norm, that of the unscaled gradients before clipping over
    all ranks, are judged each by its own last values. The device decides, before the update: parameters, moments, step
    counts and LR stay as they are, and to the schedule the step was no observation.

    Each finite value counts among the last ones, that of a skipped step too: otherwise a shift of the level would skip
    all steps from then on. One that is not finite does not, and is no spike: non-finite gradients are left to
    `skip_nonfinite`, which is then on by default. Where no value differed from the others, nothing is a spike.

    Args:
        rolling_interval_length: last values that a value is compared with. 2 to 1024. Default: 128.
        sigma_factor: deviations (with n - 1 in the denominator) that a value may be above the mean. > 0; below about 4,
            steps are skipped without a cause. Default: 6.
        minimum: values that there must be before one is judged. 2 to `rolling_interval_length`. Default: half of that,
            64 of 128.

    Raises:
        TypeError, ValueError: an option has the wrong type, or is outside its range.
    """

    rolling_interval_length: int = 128
    sigma_factor: float = 6.0
    minimum: int | None = None

    def __post_init__(self) -> None:
        length = checks.whole(self, "rolling_interval_length", least=2, most=MAX_INTERVAL)
        if not checks.number(self, "sigma_factor", allowed="> 0", example=6.0) > 0:
            checks.refuse(self, "sigma_factor", self.sigma_factor, "a number > 0", "write sigma_factor=6.0")
        if self.minimum is None:
            object.__setattr__(self, "minimum", max(2, length // 2))
        checks.whole(self, "minimum", least=2, most=length)

    def slots(self) -> dict[str, float]:
        """Return the values of the control vector that this configuration fixes."""
        assert self.minimum is not None
        return {
            "spike_window": float(self.rolling_interval_length),
            "spike_minimum": float(self.minimum),
            "spike_sigmas": self.sigma_factor,
        }


def total(value: Callable[[int], float], count: int) -> float:
    """Return the sum of `value(age)` over the ages from 0, the oldest, to `count` - 1, in the order of `LANES`."""
    lanes = [0.0] * LANES
    for age in range(count):
        lanes[age % LANES] += value(age)
    while len(lanes) > 1:
        lanes = [a + b for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
    return lanes[0]


def limit(values: deque[float], minimum: int, sigmas: float) -> float:
    """Return what is `sigmas` deviations above the mean of the values, oldest first; NaN, beyond which nothing is,
    where there are too few of them, or all are the same.
    """
    if len(values) < minimum:
        return math.nan
    oldest, count = values[0], len(values)
    mean = total(lambda age: values[age] - oldest, count) / count  # K1: less the oldest, exact for a constant

    def square(age: int) -> float:
        apart = (values[age] - oldest) - mean
        return apart * apart

    squares = total(square, count)
    return oldest + (mean + sigmas * math.sqrt(squares / (count - 1))) if squares > 0 else math.nan  # K2


class SpikeSpec:
    """The rule on the host, over plain floats.

    Args:
        config: the options.
        larger_is_worse: the bad side of losses; that of norms is always above.

    Attributes:
        losses, norms: the last values, oldest first.
        spikes: steps skipped so far.
    """

    def __init__(self, config: SkipSpikes, *, larger_is_worse: bool = True) -> None:
        self.config, self.larger_is_worse = config, larger_is_worse
        self.losses, self.norms = (deque[float](maxlen=config.rolling_interval_length) for _ in range(2))
        self.spikes = 0

    def judge(self, loss: float, norm: float, *, skipped: bool = False) -> bool:
        """Take loss and norm of one step, NaN for none; return whether they skip it.

        Args:
            loss: the mean over observations and ranks.
            norm: of the unscaled gradients, before clipping.
            skipped: whether the step is skipped for a non-finite gradient anyway.
        """
        minimum, sigmas = self.config.minimum, self.config.sigma_factor
        assert minimum is not None
        if self.larger_is_worse:
            beyond = loss > limit(self.losses, minimum, sigmas)
        else:
            beyond = loss < limit(self.losses, minimum, -sigmas)
        beyond = math.isfinite(loss) and beyond  # K3
        spike = beyond or (math.isfinite(norm) and norm > limit(self.norms, minimum, sigmas))
        for ring, value in ((self.losses, loss), (self.norms, norm)):
            if math.isfinite(value):  # K4
                ring.append(value)
        self.spikes += spike and not skipped
        return spike and not skipped
