"""Medians with intervals, means with bounds, and paired comparisons, of losses that may be infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 5  # pairs that a verdict is given on


@dataclass(frozen=True)
class Interval:
    """A median with its bootstrap interval.

    Of five values the interval of `LEVEL` reaches from the least to the largest: the median of a resample is the least
    with probability 0.058. It narrows from seven on.
    """

    median: float
    low: float
    high: float
    count: int

    @property
    def sign(self) -> int:
        """-1 or 1 if the whole interval is below or above 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the middle two. Infinite values are allowed, NaN is not.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("median: expected at least one value, got none")
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else _mean(ordered[half - 1], ordered[half])


def bootstrap(values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """The median, and the percentile interval of the medians of resamples drawn with replacement, always the same ones.

    Args:
        values: at least one.
        level: share of the resamples' medians that the interval holds.
        resamples: their number.

    References: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    count = len(values)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    medians = _medians(ordered[drawn]).sort().values
    outside = round((1 - level) / 2 * resamples)
    return Interval(median(values), float(medians[outside]), float(medians[resamples - 1 - outside]), count)


def share(part: Sequence[float], whole: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """The median of a part over the median of the whole, seed by seed in the same order, with its percentile interval.

    Seeds are resampled, and both medians are of the same ones; resamples whose whole is not above 0 are left out.

    Args:
        part: at least one, may be infinite.
        whole: as many, finite, with a median above 0.
        level: share of the resamples that the interval holds.
        resamples: their number.

    Raises:
        ValueError: not as many of one as of the other, or the median of the whole is not above 0.
    """
    if len(part) != len(whole) or not median(whole) > 0:
        raise ValueError(f"share: expected as many of both, and a whole above 0, got {part!r} and {whole!r}")
    count = len(part)
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))
    tops, bottoms = (_medians(torch.tensor(values, dtype=torch.float64)[drawn]) for values in (part, whole))
    shares = (tops[bottoms > 0] / bottoms[bottoms > 0]).sort().values
    outside = round((1 - level) / 2 * len(shares))
    low, high = float(shares[outside]), float(shares[len(shares) - 1 - outside])
    return Interval(median(part) / median(whole), low, high, count)


def _medians(rows: torch.Tensor) -> torch.Tensor:
    ordered, count = rows.sort(dim=1).values, rows.shape[1]
    low, high = ordered[:, (count - 1) // 2], ordered[:, count // 2]
    return torch.where(low == high, low, (low + high) / 2)  # inf - inf is nowhere computed


@dataclass(frozen=True)
class Paired:
    """One schedule against another on the same seeds; negative differences are in favour of the first.

    Attributes:
        difference: of the losses, seed by seed, in nats.
        wins, losses, ties: seeds on which the first had the smaller, larger, same loss.
    """

    difference: Interval
    wins: int
    losses: int
    ties: int

    @property
    def verdict(self) -> str:
        """Either "better" or "worse" if the interval of the median difference leaves out 0, else "tie".

        With fewer than `FEWEST` pairs "few": of two, both have one sign half of the time.
        """
        if self.difference.count < FEWEST:
            return "few"
        return {-1: "better", 0: "tie", 1: "worse"}[self.difference.sign]

    @property
    def sign_test(self) -> float:
        """Two-sided probability of so uneven signs, were both as likely; ties are left out."""
        n = self.wins + self.losses
        tail = sum(math.comb(n, k) for k in range(min(self.wins, self.losses) + 1))
        return min(1.0, 2 * tail / 2**n)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare losses of the same seeds, in the same order; two infinite ones are a tie.

    Raises:
        ValueError: not as many of one as of the other.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired: expected as many losses of both, got {len(ours)} and {len(theirs)}")
    differences = [0.0 if a == b else a - b for a, b in zip(ours, theirs, strict=True)]
    wins, losses = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    return Paired(bootstrap(differences), wins, losses, len(differences) - wins - losses)


@dataclass(frozen=True)
class Mean:
    """A mean with its one-sided upper bound.

    Attributes:
        mean: infinite if a value is.
        deviation: of the values, with the denominator n - 1; 0 for a single one.
        upper: bound of the mean, by Student's t; infinite for a single value.
        count: of values.
    """

    mean: float
    deviation: float
    upper: float
    count: int


def mean(values: Sequence[float], level: float = LEVEL) -> Mean:
    """The mean of at least one value, none of them NaN, and the bound that it is below with probability `level`."""
    count = len(values)
    if math.inf in values:
        return Mean(math.inf, math.inf, math.inf, count)
    middle = math.fsum(values) / count
    if count == 1:
        return Mean(middle, 0.0, math.inf, 1)
    deviation = math.sqrt(math.fsum((x - middle) ** 2 for x in values) / (count - 1))
    return Mean(middle, deviation, middle + student(level, count - 1) * deviation / math.sqrt(count), count)


def student(level: float, degrees: int) -> float:
    """The quantile of Student's t distribution, to four digits.

    With t = sqrt(degrees) tan(a) the density of the angle a is proportional to cos(a)^(degrees - 1).
    """
    angle = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (math.pi / 200_000) - math.pi / 2
    weight = angle.cos() ** (degrees - 1)
    share = weight.cumsum(0) / weight.sum()
    return math.sqrt(degrees) * math.tan(float(angle[int(torch.searchsorted(share, level))]))


def _mean(a: float, b: float) -> float:
    return a if a == b else (a + b) / 2
