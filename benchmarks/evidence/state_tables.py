"""What the runs of the preset `state` say: each format less float32 on the same seeds, and the verdict of the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.evidence.formats import CONDITIONS, FORMATS
from benchmarks.evidence.plan import Plan, value
from benchmarks.evidence.presets import Share
from benchmarks.evidence.results import Results
from benchmarks.evidence.statistics import FEWEST, Mean, mean
from benchmarks.evidence.tables import markdown

BASE = "fp32"
TOLERANCE = 0.3  # percent of float32's loss, for the upper bound of the mean difference
LARGEST = 1000  # percent that are shown
NULL = "torch"  # what rounding alone changes; no format


@dataclass(frozen=True)
class Compared:
    """One format under one condition on one task.

    Attributes:
        difference: to float32 under the same condition, in percent of the mean loss of that.
        failed: runs that broke off, or ended above the loss before the first step.
    """

    difference: Mean
    failed: int

    @property
    def verdict(self) -> str:
        """As the plan says; "few" with fewer than `FEWEST` pairs."""
        if self.difference.count < FEWEST:
            return "few"
        return "passed" if self.difference.upper <= TOLERANCE else "failed"


class States:
    """The finished runs of a plan of formats.

    Args:
        plan: says which run belongs where.
        results: the finished ones.
    """

    def __init__(self, plan: Plan, results: Results) -> None:
        self.plan, self.results = plan, results
        self.shares = [share for share in plan.preset.shares if share.stored]

    def losses(self, share: Share, condition: str, name: str) -> dict[int, float]:
        """Held-out loss at the end by seed, infinite where a run broke off."""
        runs = self.plan.stored(share, condition, name)
        return {run.seed: value(record) for run in runs if (record := self.results.get(run)) is not None}

    def compared(self, share: Share, condition: str, name: str) -> Compared | None:
        """None while no seed has both."""
        base, own = self.losses(share, condition, BASE), self.losses(share, condition, name)
        seeds = sorted(base.keys() & own.keys())
        if not seeds:
            return None
        whole = sum(base[seed] for seed in seeds) / len(seeds)
        runs = self.plan.stored(share, condition, name)
        failed = sum((record := self.results.get(run)) is not None and record["failed"] is not None for run in runs)
        return Compared(mean([100 * (own[seed] - base[seed]) / whole for seed in seeds]), failed)

    def pairs(self) -> list[tuple[str, str]]:
        """Conditions and formats in the order of the plan, float32 left out."""
        every = (pair for share in self.shares for pair in share.stored)
        return [pair for pair in dict.fromkeys(every) if pair[1] != BASE]


def percent(number: float) -> str:
    """A difference, in so many digits that the bounds differ."""
    if not math.isfinite(number):
        return "infinite"
    if number > LARGEST:
        return f"> +{LARGEST:,}"
    return f"{number:+.2f}" if abs(number) < 10 else f"{number:+,.0f}"


def noise(states: States) -> str:
    """Float32's loss, how much it differs over seeds, and what rounding alone changes."""
    rows = []
    for share in states.shares:
        for condition in dict.fromkeys(condition for condition, _ in share.stored):
            losses = list(states.losses(share, condition, BASE).values())
            if losses:
                over = mean(losses)
                null = states.compared(share, condition, NULL)
                rows.append([f"{share.task}, {condition}", str(over.count), f"{over.mean:.4f}"])
                rows[-1] += [f"{100 * over.deviation / over.mean:.1f} %"]
                rows[-1] += [f"{null.difference.mean:+.5f} %" if null else ""]
    columns = ["float32 AdamW", "seeds", "mean loss", "standard deviation over seeds", "torch's AdamW less ours"]
    return markdown(columns, rows)


def verdicts(states: States) -> str:
    """A row per condition, and under it one per format: for each task mean difference, upper bound and verdict."""
    columns = ["format"]
    for share in states.shares:
        columns += [f"{share.task}: mean difference, % (seeds)", "upper bound, %", "verdict"]
    rows, last = [], None
    for condition, name in states.pairs():
        cells = [cell for share in states.shares for cell in _cells(states.compared(share, condition, name))]
        if any(cells) and condition != last:
            rows.append([f"**{CONDITIONS[condition].about}**", *[""] * len(cells)])
            last = condition
        if any(cells):
            rows.append([FORMATS[name].about, *cells])
    return markdown(columns, rows)


def _cells(found: Compared | None) -> Iterator[str]:
    if found is None:
        yield from ("", "", "")
        return
    deviation, seeds = found.difference.deviation, found.difference.count
    yield percent(found.difference.mean) + (f" ± {deviation:.2g}" if 0 < deviation < LARGEST else "") + f" ({seeds})"
    yield percent(found.difference.upper)
    yield found.verdict + (f" ({found.failed} of {seeds} runs broke)" if found.failed else "")
