"""How measured values are summed up: the median and what most of them lie between."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile, and of how many values."""

    median: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; percentiles are values that occurred, of few values the outer ones."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[last // 5], ordered[-(-last * 4 // 5)], len(ordered))

    @classmethod
    def of_ratios(cls, base: Sequence[float], other: Sequence[float]) -> Spread:
        """Of `base` over `other`, values with the same index by each other: those were taken in the same round."""
        return cls.of([b / o for b, o in zip(base, other, strict=True)])

    def scaled(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.median * factor, self.p20 * factor, self.p80 * factor, self.count)

    def as_dict(self) -> dict[str, Any]:
        """By name, as results are written."""
        return asdict(self)
