"""The timing of `bench`: contenders in turn, round by round, and ratios of times taken in the same round.

A machine's speed drifts by more than the differences that matter: no contender is timed alone, every second round goes
through them backwards, and a ratio is the median of ratios over rounds, never a ratio of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch.utils.benchmark import Timer

from greedylr_fused.commands.bench.cases import (
    CONTENDERS,
    FUSED,
    MOST,
    STEP,
    WORKS,
    Case,
    Step,
    Workload,
    build,
    that_fit,
)

#: Rounds that a case has time for where steps are slow, and the time that they take, in steps of torch's fused: nine
#: rows, each called twice in a round, at three times that step's time on average, since foreach takes five on a CPU.
_ROUNDS = 6
_CALLS = 9 * 2 * 3 * _ROUNDS

Row = TypeVar("Row")


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile, and number of values."""

    median: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value; percentiles are values that occurred, the outer ones of few."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[last // 5], ordered[-(-last * 4 // 5)], len(ordered))

    @classmethod
    def of_ratios(cls, base: Sequence[float], other: Sequence[float]) -> Spread:
        """Return the spread of `base` over `other`, index by index: those were taken in the same round."""
        return cls.of([b / o for b, o in zip(base, other, strict=True)])

    def scaled(self, factor: float) -> Spread:
        """Return the spread with all values times `factor`, for another unit."""
        return Spread(self.median * factor, self.p20 * factor, self.p80 * factor, self.count)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name, as results are written."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        case: which parameters.
        work: one of `WORKS`.
        contender: one of `CONTENDERS`.
        seconds: time of one step; None if it could not run.
        speed: time of each of torch's optimizers for the same work over this one's.
        why: reason why it could not run.
    """

    case: Case
    work: str
    contender: str
    seconds: Spread | None
    speed: Mapping[str, Spread]
    why: str = ""

    @property
    def gb_per_s(self) -> float | None:
        """Bytes that the work must move, over the median time; None if it could not run."""
        if self.seconds is None:
            return None
        return self.case.elements * self.case.bytes_moved(self.work) / self.seconds.median / 1e9


def affordable(device: torch.device, seconds: float, threads: int) -> int:
    """Return how many parameters a case may have to be timed in so many seconds, in a third of the memory."""
    most = min(MOST[device.type], that_fit(device) // 3)
    probe = Case("probe", ((min(most, 4_000_000),),), torch.float32)
    timer = _timer(build(FUSED, STEP, Workload(probe, device), "auto"), threads)
    per_parameter = timer.blocked_autorange(min_run_time=min(0.2, seconds / 10)).median / probe.elements
    return _round(max(1_000, min(most, int(seconds / _CALLS / per_parameter))))


def measure(case: Case, device: torch.device, seconds: float, threads: int, backend: str) -> list[Result]:
    """Time all contenders at all work on one case.

    Args:
        case: parameters to step.
        device: where to step them.
        seconds: time for setting up and timing together; two rounds are done in any case.
        threads: number that torch may use on a CPU.
        backend: of FusedAdamW.
    """
    begin = time.perf_counter()
    workload = Workload(case, device)
    timers: dict[tuple[str, str], Timer] = {}
    reasons: dict[tuple[str, str], str] = {}
    for work in WORKS:
        for contender in CONTENDERS:
            try:
                step = build(contender, work, workload, backend)
                step()
                timers[work, contender] = _timer(step, threads)
            except RuntimeError as error:  # no such kernel, or no memory left: said in the report
                reasons[work, contender] = " ".join(str(error).split())
    times = in_rounds(timers, seconds - (time.perf_counter() - begin))
    found = []
    for work in WORKS:
        for contender in CONTENDERS:
            own = times.get((work, contender))
            others = {other: times[work, other] for other in CONTENDERS[1:] if own and (work, other) in times}
            speed = {other: Spread.of_ratios(theirs, own) for other, theirs in others.items() if own}
            spread = Spread.of(own) if own else None
            found.append(Result(case, work, contender, spread, speed, reasons.get((work, contender), "")))
    return found


def in_rounds(timers: Mapping[Row, Timer], seconds: float) -> dict[Row, list[float]]:
    """Return times of one call in seconds, one per round; those with the same index belong together.

    Rounds go on while two more of them fit into the time: as many forwards as backwards, and two in any case.
    """
    found: dict[Row, list[float]] = {row: [] for row in timers}
    part = max(0.0, seconds) / (4 * _ROUNDS * max(1, len(timers)))
    begin = time.perf_counter()
    before, now = begin, begin
    while now + (now - before) <= begin + seconds or now == begin:
        before = now
        for row in [*timers, *reversed(list(timers))]:
            found[row].append(timers[row].blocked_autorange(min_run_time=part).median)
        now = time.perf_counter()
    return found


def _timer(step: Step, threads: int) -> Timer:
    return Timer("step()", globals={"step": step}, num_threads=threads)


def _round(number: int) -> int:
    """Round down to 1, 2, 5, 10, ...: with a power of two, all streams would meet in the same sets of a cache."""
    power = int("1" + "0" * (len(str(number)) - 1))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= number)
