"""A step schedule of any shape: its values, one per step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import StepSchedule, check_floor, check_warmup, warm_up
from greedylr_fused.warning import warn

#: Values shown by `repr`; those of a longer table are counted.
SHOWN = 6


#: Below this, the largest of all values was hardly meant as a ratio.
LEAST = 0.01


@dataclass(frozen=True, kw_only=True, repr=False)
class Table(StepSchedule):
    """Values that were computed or measured elsewhere, one per step.

    Args:
        values: the LR of each step as a ratio of the peak, from the first step after the warm-up; the last one stays.
            Finite, >= 0, may exceed 1; from 1 to 2**25 of them. A sequence, or a 1-D tensor or array of any real
            dtype (one on a GPU is waited for); kept as a tuple of floats.
        warmup_steps: steps of a linear warm-up from 0 to the peak, before the values. In [0, 2**25]. Default: 0.
        min_lr_ratio: the floor r as a ratio of the peak, in [0, 1]: a value v becomes `v * (1 - r) + r`. Default: 0.0,
            which leaves the values as they are, to the bit.

    Raises:
        ValueError: there is no value, or one that is negative or not finite (the message names its index), or an
            option is outside its range.
        TypeError: the values are not numbers in one dimension, or an option has the wrong type.
    """

    values: Sequence[float] = field(kw_only=False)
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self._checked(self.values))
        check_warmup(self)
        check_floor(self)

    def curve(self) -> array[float]:
        """Return the warm-up and then the values, lifted to the floor: `warmup_steps + len(values)` values."""
        floor, span = self.min_lr_ratio, 1.0 - self.min_lr_ratio
        curve = array("d", warm_up(self.warmup_steps))
        curve.extend(value * span + floor for value in self.values)
        return curve

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.values[:SHOWN]))
        more = f", ... {self.values[-1]!r}: {len(self.values)} values" if len(self.values) > SHOWN else ""
        options = f"warmup_steps={self.warmup_steps!r}, min_lr_ratio={self.min_lr_ratio!r}"
        return f"{type(self).__name__}([{shown}{more}], {options})"

    def _checked(self, values: Any) -> tuple[float, ...]:
        kind = "numbers in one dimension"
        remedy = "pass a list of numbers, or a 1-D tensor, such as Table([1.0, 0.5, 0.0])"
        given, values = values, values.tolist() if hasattr(values, "tolist") else values  # tensor, ndarray, array
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            checks.mistype(self, "values", type(given), kind, remedy)
        if not 1 <= len(values) <= checks.MAX_STEPS:
            checks.refuse(self, "values", f"{len(values)} values", f"1 to {checks.MAX_STEPS} values", remedy)
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, Real):
                checks.mistype(self, f"values[{index}]", value, kind, remedy)
            if not 0 <= float(value) < math.inf:
                remedy = "write ratios of the peak LR, such as 0.5"
                checks.refuse(self, f"values[{index}]", value, "a finite number >= 0", remedy)
        if 0 < max(values) < LEAST:
            warn(
                f"{type(self).__name__}: its largest value is {float(max(values)):g}; values are ratios of the "
                "optimizer's lr, not learning rates; divide them by it"
            )
        return tuple(map(float, values))
