"""Which runs there are, what is tuned, and in which order they come: what matters most comes first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.evidence.finders import lr_of
from benchmarks.evidence.presets import SCENARIOS, Preset, Share
from benchmarks.evidence.schedules import LOSS_DRIVEN
from benchmarks.evidence.statistics import median
from benchmarks.evidence.tasks import TASKS

TUNING_SEED = 1000  # the first of those that tune; seeds of the comparison count from 0
STORED_WITH = "linear"  # the schedule of runs that compare formats
EXTENSIONS = 2  # points added beyond an end of the grid while the best one is there
STEP = 3.0  # between neighbours, about; around the best one its square root
Key = tuple[str, str, float, int, str, int, str]


@dataclass(frozen=True)
class Run:
    """One training run; the fields are what it is found again by.

    Attributes:
        task, schedule: names.
        lr: peak, of a free GreedyLR the starting LR.
        seed: of start and batches.
        scenario: "clean", "spikes", one of `SCENARIOS` or of `formats.CONDITIONS`, or "norms", a clean run that records
            its gradient norms.
        steps: length.
        storage: one of `formats.FORMATS`.
    """

    task: str
    schedule: str
    lr: float
    seed: int
    scenario: str
    steps: int
    storage: str = "fp32"

    @property
    def key(self) -> Key:
        """All fields, of which `lr` is exact in JSON."""
        return self.task, self.schedule, self.lr, self.seed, self.scenario, self.steps, self.storage

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Finished(Protocol):
    """Looks up finished runs."""

    def get(self, run: Run) -> dict[str, Any] | None: ...


def times(lr: float, factor: float) -> float:
    """A learning rate off by a factor, in three digits, so that it is the same however it was reached."""
    return float(f"{lr * factor:.3g}")


def value(record: dict[str, Any]) -> float:
    """Held-out loss at the end; infinite where the run broke off."""
    return math.inf if record["final"] is None else float(record["final"])


class Plan:
    """All runs of a preset, as far as they are known: an LR is known once the tuning of its schedule is done.

    Args:
        preset: what is asked for.
        finished: what there is; asked anew at each call.
    """

    def __init__(self, preset: Preset, finished: Finished) -> None:
        self.preset, self._finished = preset, finished
        self._tuned: dict[tuple[str, str], tuple[list[Run], float]] = {}

    def missing(self) -> Iterator[Run]:
        """Runs that can begin now, in the order of their importance."""
        seen = set()
        for run in self._all():
            if run not in seen and self._finished.get(run) is None:
                seen.add(run)
                yield run

    def run(self, share: Share, schedule: str, lr: float, seed: int, scenario: str = "clean") -> Run:
        """In this preset's length."""
        return Run(share.task, schedule, lr, seed, scenario, self.preset.steps(share.task))

    def tuning(self, share: Share, schedule: str) -> tuple[list[Run], float | None]:
        """The runs that tune, and the best LR once all have ended.

        The best is the one with the least median over the tuning seeds. While it is the first or the last of the grid,
        a further point is tried, `EXTENSIONS` times; then one on each side of it, half a step away, since a whole step
        costs more than most schedules differ by. None is best where all runs broke off. A variant of GreedyLR takes
        the LR of what it varies, and a finder the one that it is given, or its own, with no run.
        """
        source = lr_of(schedule)
        if isinstance(source, float):
            return [], source
        schedule = source
        if (known := self._tuned.get((share.task, schedule))) is not None:
            return known
        grid = list(TASKS[share.task].grid)
        most, finer = len(grid) + EXTENSIONS, False
        while True:
            tried = {
                lr: [self.run(share, schedule, lr, TUNING_SEED + n) for n in range(share.tuning_seeds)] for lr in grid
            }
            runs = [run for own in tried.values() for run in own]
            found = {lr: [self._finished.get(run) for run in own] for lr, own in tried.items()}
            if any(None in records for records in found.values()):
                return runs, None
            scores = {lr: median([value(record) for record in records if record]) for lr, records in found.items()}
            best = min(grid, key=lambda lr: scores[lr])
            if math.isinf(scores[best]):
                return runs, None
            if finer:
                self._tuned[share.task, schedule] = runs, best
                return runs, best
            if finer := grid[0] < best < grid[-1] or len(grid) >= most:
                grid = sorted({*grid, times(best, STEP**-0.5), times(best, STEP**0.5)})
            else:
                grid = [times(best, 1 / STEP), *grid] if best == grid[0] else [*grid, times(best, STEP)]

    def tuned(self, share: Share, schedule: str) -> float | None:
        """The best LR, or None while it is not known."""
        return self.tuning(share, schedule)[1]

    def stored(self, share: Share, condition: str, name: str) -> list[Run]:
        """The runs in a format under a condition, all at one LR and with one schedule."""
        assert share.lr is not None
        steps, seeds = self.preset.steps(share.task), share.seeds
        if (condition, name) in share.noisy:
            seeds = share.noisy_seeds
        return [Run(share.task, STORED_WITH, share.lr, seed, condition, steps, name) for seed in range(seeds)]

    def norms_run(self, share: Share) -> Run | None:
        """The run whose gradient norms `refined` is made of, once `linear` is tuned."""
        lr = self.tuned(share, "linear")
        return None if lr is None else self.run(share, "linear", lr, TUNING_SEED, "norms")

    def compared(self, share: Share, schedule: str, factor: float = 1.0, scenario: str = "clean") -> list[Run]:
        """The runs of the comparison at the best LR times a factor; none while it is not known."""
        lr = self.tuned(share, schedule)
        seeds = range(share.first_seed, share.first_seed + share.seeds)
        return [] if lr is None else [self.run(share, schedule, times(lr, factor), seed, scenario) for seed in seeds]

    def _all(self) -> Iterator[Run]:
        shares = self.preset.shares
        for share in shares:  # seed by seed: cut anywhere, there are as many of each
            every = [self.stored(share, *pair) for pair in share.stored]
            yield from (run for of_seed in itertools.zip_longest(*every) for run in of_seed if run is not None)
        for share in shares:
            yield from self._tuned_and_compared(share)
        yield from self._over(shares, "third", (1 / 3, 3.0))
        yield from self._in_scenarios(shares)
        for share in shares:
            for scenario, schedule in share.disturbed:
                yield from self.compared(share, schedule, scenario=scenario)
        yield from self._over(shares, "tenth", (0.1, 10.0))
        for factors in ((1.0,), (1 / 3, 3.0)):
            for share in shares:
                for name in self.variants(share, factors):
                    for factor in factors:
                        yield from self.compared(share, name, factor)

    def variants(self, share: Share, factors: Sequence[float] = (1.0,)) -> list[str]:
        """The variants that a task compares at these factors."""
        return list(share.ablations) if factors == (1.0,) or share.ablations_off else []

    def _tuned_and_compared(self, share: Share) -> Iterator[Run]:
        for schedule in share.schedules:
            if schedule == "refined":
                norms = self.norms_run(share)
                if norms is None:
                    continue
                if self._finished.get(norms) is None:
                    yield norms
                    continue
            yield from self.tuning(share, schedule)[0]
            yield from self.compared(share, schedule)

    def _over(self, shares: Iterable[Share], kind: str, factors: Sequence[float]) -> Iterator[Run]:
        for share in shares:
            for schedule in getattr(share, kind):
                for factor in factors:
                    yield from self.compared(share, schedule, factor)

    def _in_scenarios(self, shares: Iterable[Share]) -> Iterator[Run]:
        for scenario in SCENARIOS:
            for share in shares:
                for schedule in share.scenarios:
                    yield from self.compared(share, schedule, scenario=seen_as(scenario, schedule))


def seen_as(scenario: str, schedule: str) -> str:
    """The scenario that the run of a schedule is: noise in the loss that it does not look at changes nothing."""
    return "clean" if scenario == "noisy-loss" and schedule.split()[0] not in LOSS_DRIVEN else scenario
