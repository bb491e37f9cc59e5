"""What the finished runs say: losses at the best LR and away from it, and differences on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evidence.plan import Plan, Run, seen_as, value
from benchmarks.evidence.presets import Share
from benchmarks.evidence.results import Results
from benchmarks.evidence.statistics import Interval, Paired, bootstrap, paired

FACTORS = (0.1, 1 / 3, 1.0, 3.0, 10.0)
FACTOR_NAMES = {0.1: "1/10", 1 / 3: "1/3", 1.0: "1", 3.0: "3", 10.0: "10"}


@dataclass(frozen=True)
class Cell:
    """One schedule at one LR in one scenario.

    Attributes:
        lr: peak.
        losses: held-out loss at the end of each seed that there is, by seed.
        failed: how many of them failed; they are among the losses.
        wanted: how many seeds are planned.
    """

    lr: float
    losses: dict[int, float]
    failed: int
    wanted: int

    @property
    def interval(self) -> Interval:
        """Of the median."""
        return bootstrap([self.losses[seed] for seed in sorted(self.losses)])

    def against(self, other: Cell) -> Paired | None:
        """On the seeds that both have; None without any."""
        seeds = sorted(self.losses.keys() & other.losses.keys())
        return paired([self.losses[seed] for seed in seeds], [other.losses[seed] for seed in seeds]) if seeds else None


class Evidence:
    """The finished runs of a plan.

    Args:
        plan: says which run belongs where.
        results: the finished ones.
    """

    def __init__(self, plan: Plan, results: Results) -> None:
        self.plan, self.results = plan, results

    def share(self, task: str) -> Share:
        """What the preset does with a task."""
        return next(share for share in self.plan.preset.shares if share.task == task)

    def cell(self, share: Share, schedule: str, factor: float = 1.0, scenario: str = "clean") -> Cell | None:
        """None while nothing of it is finished."""
        runs = self.plan.compared(share, schedule, factor, seen_as(scenario, schedule))
        found = [(run, record) for run in runs if (record := self.results.get(run)) is not None]
        if not found:
            return None
        losses = {run.seed: value(record) for run, record in found}
        failed = sum(record["failed"] is not None for _, record in found)
        return Cell(runs[0].lr, losses, failed, len(runs))

    def tasks(self) -> list[Share]:
        """Those of which something is compared."""
        return [share for share in self.plan.preset.shares if any(self.cell(share, name) for name in share.schedules)]

    def compared(self, share: Share, names: Sequence[str], factor: float = 1.0, scenario: str = "clean") -> list[str]:
        """Those that have a cell, the best one first."""
        cells = {name: cell for name in names if (cell := self.cell(share, name, factor, scenario)) is not None}
        return sorted(cells, key=lambda name: cells[name].interval.median)

    def disturbed(self, share: Share, scenario: str) -> list[str]:
        """Those of which runs in a scenario are finished, the best one first; none if none was disturbed by it."""
        found = self.compared(share, share.scenarios, scenario=scenario)
        return found if any(seen_as(scenario, name) == scenario for name in found) else []

    def against(
        self, share: Share, ours: str, theirs: str, factor: float = 1.0, scenario: str = "clean"
    ) -> Paired | None:
        """Both at their own best LR times the same factor; None while one is missing."""
        a, b = (self.cell(share, name, factor, scenario) for name in (ours, theirs))
        return a.against(b) if a is not None and b is not None else None

    def records(self, share: Share, schedule: str, scenario: str = "clean") -> list[tuple[Run, dict[str, object]]]:
        """Of all seeds at the best LR."""
        runs = self.plan.compared(share, schedule, scenario=seen_as(scenario, schedule))
        return [(run, record) for run in runs if (record := self.results.get(run)) is not None]
