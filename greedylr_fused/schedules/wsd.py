"""Warm-up, stable phase, decay: the schedule whose decay may be decided late (MiniCPM, arXiv 2404.06395)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import StepSchedule, check_cycles, check_floor, check_warmup

#: Each goes from 0 to 1 with the share of the warm-up that is done.
WARMUPS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: 0.5 * (1.0 - math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1.0 - math.sqrt(1.0 - done),
}

#: Each goes from 1 to 0 with the share of the decay that is done; a cosine also takes the number of waves.
DECAYS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda done, cycles: 1.0 - done,
    "cosine": lambda done, cycles: 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * done)),
    "1-sqrt": lambda done, cycles: 1.0 - math.sqrt(done),
}


@dataclass(frozen=True, kw_only=True)
class WSD(StepSchedule):
    """A warm-up, a stable phase at the peak, and a decay to the floor at the end of the run.

    Without `total_steps` it is open-ended: it stays at the peak until `opt.start_decay(steps)` is called. If both
    forms end in the same number of steps, they have the same LRs, to the bit.

    Source: bit-equal to `transformers.get_wsd_schedule` 5.17 with `num_training_steps=total_steps`.

    Args:
        total_steps: length of the run in steps, warm-up and decay included, in [1, 2**25]; or None, open-ended.
            Default: None.
        decay_steps: steps from the peak to the floor at the end of the run, in [1, total_steps - warmup_steps]. Needed
            with `total_steps`, and not allowed without. Default: None. A tenth of the run is enough according to
            MiniCPM; arXiv 2405.18392 advises a tenth to a fifth with "1-sqrt".
        warmup_steps: steps of the warm-up, in [0, 2**25]. Default: 0.
        min_lr_ratio: the floor as a ratio of the peak, in [0, 1]. As in transformers the warm-up starts from it too,
            not from 0 as in the other schedules. Default: 0.0.
        warmup_type: "linear", "cosine" or "1-sqrt". Default: "linear".
        decay_type: "linear", "cosine" or "1-sqrt". Default: "cosine".
        num_cycles: waves of a cosine decay; 0.5 falls once. In (0, 2**25]. Default: 0.5.

    Raises:
        ValueError: an option is outside its range, or the phases are longer than the run.
        TypeError: an option has the wrong type.
    """

    total_steps: int | None = field(default=None, kw_only=False)
    decay_steps: int | None = None
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    warmup_type: str = "linear"
    decay_type: str = "cosine"
    num_cycles: float = 0.5

    def __post_init__(self) -> None:
        check_warmup(self)
        check_floor(self)
        check_cycles(self)
        checks.choice(self, "warmup_type", tuple(WARMUPS))
        checks.choice(self, "decay_type", tuple(DECAYS))
        if self.total_steps is None:
            if self.decay_steps is not None:
                remedy = "write total_steps= too, or leave both out and call opt.start_decay(steps) during the run"
                checks.refuse(self, "decay_steps", self.decay_steps, "None without total_steps", remedy)
            return
        total = checks.whole(self, "total_steps", least=1)
        if self.decay_steps is None:
            remedy = f"write decay_steps={max(1, total // 10)}, a tenth, or leave out total_steps to decay when told to"
            checks.refuse(self, "decay_steps", None, "a number of steps where there is total_steps", remedy)
        checks.whole(self, "decay_steps", least=1)
        if self.warmup_steps + self.decay_steps > total:
            allowed = f"at most total_steps={total} less warmup_steps={self.warmup_steps}"
            checks.refuse(self, "decay_steps", self.decay_steps, allowed, "shorten the warm-up or the decay")

    def curve(self) -> array[float]:
        """Return warm-up, stable phase and decay: `total_steps + 1` values; open-ended: the warm-up, then 1.0."""
        floor, span, warm = self.min_lr_ratio, 1.0 - self.min_lr_ratio, WARMUPS[self.warmup_type]
        values = array("d", (warm(n / self.warmup_steps) * span + floor for n in range(self.warmup_steps)))
        if self.total_steps is None or self.decay_steps is None:
            values.append(1.0)
            return values
        values.extend([1.0] * (self.total_steps - self.warmup_steps - self.decay_steps))
        return values + self.decay(self.decay_steps)

    def decay(self, steps: int) -> array[float]:
        """Return the decay alone: `steps + 1` ratios of the peak, from 1.0 to the floor.

        Args:
            steps: length of the decay, in [1, 2**25].

        Raises:
            ValueError: `steps` is outside its range.
            TypeError: `steps` is not an int.
        """
        checks.whole(self, "steps", least=1, value=steps)
        floor, span, fall = self.min_lr_ratio, 1.0 - self.min_lr_ratio, DECAYS[self.decay_type]
        values = array("d", (fall(n / steps, self.num_cycles) * span + floor for n in range(steps)))
        values.append(floor)
        return values
