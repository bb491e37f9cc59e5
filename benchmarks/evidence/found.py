"""The verdicts of the preset `find`, as its plan states them: what a wrong LR costs `linear`, and who gets it back."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.evidence.comparison import Evidence
from benchmarks.evidence.presets import FIND, Share
from benchmarks.evidence.statistics import Interval, Paired, share

BASE = "linear"
OFF = (1 / 3, 3.0)  # factors of the goal
ENOUGH = 0.5  # share of the cost
SCHEDULES = ("wsd", "cosine", "greedy-linear", "greedy-wsd")  # of these one may take the place of `linear`
DISTURBED = ("spikes", "label-noise", "shift")
BEST = 2  # controllers that are run further off, and on the larger model


@dataclass(frozen=True)
class Goal:
    """What a controller did on a task.

    Attributes:
        right: against `linear`, both at their LR.
        shares: of the cost of each factor that counts.
    """

    right: Paired
    shares: dict[float, Interval]

    @property
    def as_good(self) -> bool:
        """Not worse at its own LR."""
        return self.right.verdict != "worse"

    @property
    def reached(self) -> bool:
        """As good, and half of each cost is recovered."""
        return self.as_good and all(found.median >= ENOUGH for found in self.shares.values())

    @property
    def firm(self) -> bool:
        """Every share is above 0 by its interval."""
        return all(found.low > 0 for found in self.shares.values())


class Found:
    """The finished runs of a preset that finds.

    Args:
        evidence: of its plan.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.shares = evidence.tasks()

    def cost(self, task: Share, factor: float) -> Paired | None:
        """Of a factor, to `linear`; None while a run is missing."""
        off, right = (self.evidence.cell(task, BASE, at) for at in (factor, 1.0))
        return off.against(right) if off is not None and right is not None else None

    def counts(self, task: Share, factor: float) -> bool:
        """Whether there is a cost to recover."""
        found = self.cost(task, factor)
        return found is not None and found.verdict == "worse"

    def recovered(self, task: Share, name: str, factor: float) -> Interval | None:
        """The share of a cost that counts; None of another, or while a run is missing."""
        if not self.counts(task, factor):
            return None
        ours, off, right = (
            self.evidence.cell(task, schedule, at) for schedule, at in ((name, factor), (BASE, factor), (BASE, 1.0))
        )
        if ours is None or off is None or right is None:
            return None
        seeds = sorted(ours.losses.keys() & off.losses.keys() & right.losses.keys())
        gained = [off.losses[seed] - ours.losses[seed] for seed in seeds]
        return share(gained, [off.losses[seed] - right.losses[seed] for seed in seeds]) if seeds else None

    def goal(self, task: Share, name: str) -> Goal | None:
        """None while a run is missing, and where no factor's cost counts."""
        counted = [factor for factor in OFF if self.counts(task, factor)]
        shares = {factor: self.recovered(task, name, factor) for factor in counted}
        right = self.evidence.against(task, name, BASE)
        if right is None or not shares or None in shares.values():
            return None
        return Goal(right, {factor: found for factor, found in shares.items() if found is not None})

    def names(self) -> list[str]:
        """Controllers of which a goal is known on some task."""
        return [name for name in FIND if name != BASE and any(self.goal(task, name) for task in self.shares)]

    def verdict(self, name: str) -> str:
        """Over tasks, in the words of the plan."""
        goals = [goal for task in self.shares if (goal := self.goal(task, name)) is not None]
        reached = [goal for goal in goals if goal.reached]
        word = "no help"
        if 2 * len(reached) >= len(goals):
            word = "the answer" if len(reached) == len(goals) else "an option"
            word += ", firmly" if all(goal.firm for goal in reached) else ""
        return f"{word}: {len(reached)} of {len(goals)} tasks"

    def mean_share(self, name: str, tasks: list[Share]) -> float | None:
        """Over these tasks and the factors that count, each share cut to [-1, 1]; None if one is not known."""
        found = [self.recovered(task, name, factor) for task in tasks for factor in OFF if self.counts(task, factor)]
        if not found or None in found:
            return None
        return sum(max(-1.0, min(1.0, own.median)) for own in found if own is not None) / len(found)

    def best(self, tasks: list[Share]) -> list[str]:
        """Those that are run further, by the plan's rule."""
        ranked = []
        for name in self.names():
            mean = self.mean_share(name, tasks)
            right = [self.evidence.against(task, name, BASE) for task in tasks]
            worse = sum(pair is not None and pair.verdict == "worse" for pair in right)
            if mean is not None and worse <= 1:
                ranked.append((-mean, FIND.index(name), name))
        return [name for _, _, name in sorted(ranked)[:BEST]]

    def against_linear(self, name: str) -> dict[str, list[str]]:
        """Verdicts on a schedule against `linear` at the same factor or under the same disturbance, by its name."""
        found: dict[str, list[str]] = {}
        for label, factor in (("best LR", 1.0), ("1/3 x LR", 1 / 3), ("3 x LR", 3.0)):
            pairs = [self.evidence.against(task, name, BASE, factor) for task in self.shares]
            found[label] = [pair.verdict for pair in pairs if pair is not None]
        for scenario in DISTURBED:
            asked = [task for task in self.shares if (scenario, name) in task.disturbed]
            pairs = [self.evidence.against(task, name, BASE, scenario=scenario) for task in asked]
            found[scenario] = [pair.verdict for pair in pairs if pair is not None]
        return found

    def first(self) -> list[str]:
        """Schedules that take the place of `linear` in the documentation, by the plan's rule; none: `linear` stays."""
        found = {name: self.against_linear(name) for name in SCHEDULES}
        return [
            name
            for name, own in found.items()
            if own["best LR"].count("better") >= 2 and not any("worse" in verdicts for verdicts in own.values())
        ]
