"""How `bench` times: contenders in turn, round by round, and ratios of times taken in the same round.

A machine's speed drifts by more than the differences that matter: no contender is timed alone, every second round goes
through them backwards, and a ratio is the median over rounds, never that of two medians taken at different times.
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

#: Rounds that a case has time for where steps are slow, and calls of torch's fused step that this then takes: nine
#: contenders, each called twice in a round, at three times the time on average, since foreach takes five on a CPU.
_ROUNDS = 6
_CALLS = 9 * 2 * 3 * _ROUNDS

Row = TypeVar("Row")


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


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        case: which parameters.
        work: of `WORKS`.
        contender: of `CONTENDERS`.
        seconds: of one step; None where it could not run.
        speed: torch's time over this one's, by torch's optimizer, for the same work.
        why: what kept it from running.
    """

    case: Case
    work: str
    contender: str
    seconds: Spread | None
    speed: Mapping[str, Spread]
    why: str = ""

    @property
    def gb_per_s(self) -> float | None:
        """What the work cannot avoid to move, over the median time."""
        if self.seconds is None:
            return None
        return self.case.elements * self.case.bytes_moved(self.work) / self.seconds.median / 1e9


def affordable(device: torch.device, seconds: float, threads: int) -> int:
    """How many parameters a case may have to be timed in so many seconds, and to take a third of the memory."""
    most = min(MOST[device.type], that_fit(device) // 3)
    probe = Case("probe", ((min(most, 4_000_000),),), torch.float32)
    timer = _timer(build(FUSED, STEP, Workload(probe, device), "auto"), threads)
    per_parameter = timer.blocked_autorange(min_run_time=min(0.2, seconds / 10)).median / probe.elements
    return _round(max(1_000, min(most, int(seconds / _CALLS / per_parameter))))


def measure(case: Case, device: torch.device, seconds: float, threads: int, backend: str) -> list[Result]:
    """Time all contenders at all work on one case.

    Args:
        case: which parameters.
        device: where.
        seconds: for setting up and timing together; two rounds are done in any case.
        threads: that torch may use on a CPU.
        backend: of ours.
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
    """Times of one call in seconds, one per round: index i of all belongs together.

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
    """The next lower of 1, 2, 5, 10, ...: with a power of two, all streams would meet in the same sets of a cache."""
    power = int("1" + "0" * (len(str(number)) - 1))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= number)
