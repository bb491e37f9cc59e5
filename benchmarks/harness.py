"""The timing protocol: cold caches, contenders taken in turn with the order alternated, ratios of neighbours in time.

A machine's speed drifts by more than the differences that matter. So all contenders of a case run in one process, one
step each per round; the next round goes through them backwards (A B C, C B A, ...), and a ratio is the median over
rounds of the two times taken in the same round, never the ratio of two medians taken at different times.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

Step = Callable[[], object]
#: Takes the share of the work done so far, between 0 and 1.
OnRound = Callable[[float], object]


class NotOffered(Exception):
    """A contender cannot do this, or not on this device; the text says why."""


@dataclass(frozen=True)
class Sample:
    """One call of a step, in seconds.

    Attributes:
        step: from its begin to its end on the device; what the user waits for when nothing else is queued.
        host: until the call returned. On a CPU the same as `step`.
        device: on a GPU with the host far enough ahead not to be waited for; None on a CPU.
    """

    step: float
    host: float
    device: float | None = None


class Clock(Protocol):
    """Times one call of a step on its device."""

    device: torch.device

    def __call__(self, step: Step) -> Sample: ...


class CpuClock:
    """Wall time around the call.

    Args:
        cold: evict the caches before each call, as forward and backward would. What was evicted is clean, so that no
            write-back of it falls into the time.
    """

    device = torch.device("cpu")

    def __init__(self, cold: bool = True) -> None:
        self._evict = torch.zeros(2 * last_level_cache() // 8, dtype=torch.int64) if cold else None

    def __call__(self, step: Step) -> Sample:
        if self._evict is not None:
            self._evict.sum()
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        return Sample(seconds, seconds)


class CudaClock:
    """CUDA events around the call, and once more with the queue held up so that the host is ahead.

    Args:
        device: a CUDA device.
        cold: read through a buffer of twice the L2 cache before each call.
        device_time: also take the second time; doubles the number of calls.
    """

    #: The queue is held up for at most this long, in seconds; a step that takes the host longer shows host time.
    LONGEST_HOLD = 0.1

    def __init__(self, device: torch.device, cold: bool = True, device_time: bool = True) -> None:
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        size = 2 * max(int(getattr(properties, "L2_cache_size", 0)), 64 << 20)
        self._evict = torch.zeros(size // 8, dtype=torch.int64, device=device) if cold else None
        self._device_time = device_time
        self._cycles_per_second = 2e9  # no GPU's clock is much above; too long a hold costs only waiting

    def __call__(self, step: Step) -> Sample:
        with torch.cuda.device(self.device):
            seconds, host = self._timed(step, hold=0.0)
            if not self._device_time:
                return Sample(seconds, host)
            device, _ = self._timed(step, hold=min(2 * host + 1e-4, self.LONGEST_HOLD))
            return Sample(seconds, host, device)

    def _timed(self, step: Step, hold: float) -> tuple[float, float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if self._evict is not None:
            self._evict.sum()
        if hold:
            torch.cuda._sleep(int(hold * self._cycles_per_second))
        begin.record()
        before = time.perf_counter()
        step()
        host = time.perf_counter() - before
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3, host


def clock_for(device: torch.device, cold: bool = True, device_time: bool = True) -> Clock:
    """The clock of a device; `device_time` is for a GPU."""
    return CudaClock(device, cold, device_time) if device.type == "cuda" else CpuClock(cold)


def need_graphs(device: torch.device) -> None:
    """Whatever is captured needs this.

    Raises:
        NotOffered: the device has no CUDA graphs.
    """
    if device.type != "cuda":
        raise NotOffered("CUDA graphs need a CUDA device")


def captured(step: Step, device: torch.device, before: Step = lambda: None) -> Step:
    """The replay of a CUDA graph of the step, after a few calls; `before` each, outside of the graph.

    Raises:
        NotOffered: the device has no CUDA graphs.
    """
    need_graphs(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            before()
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For the host's time on a CPU: waking threads for a few elements is no part of what the host of a GPU does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports, or 64 MiB where it reports none."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units], default=64 << 20)


def in_turn(names: Sequence[str], round_index: int) -> list[str]:
    """The order of a round: forwards in even ones, backwards in odd ones."""
    return list(names) if round_index % 2 == 0 else list(reversed(names))


def compare(
    steps: Mapping[str, Step],
    clock: Clock,
    *,
    seconds: float,
    rounds: tuple[int, int] = (6, 200),
    longest: float = math.inf,
    warmup: int = 2,
    on_round: OnRound | None = None,
) -> dict[str, list[Sample]]:
    """Time all steps in rounds.

    Args:
        steps: by name.
        clock: of the device that they run on.
        seconds: go on until so much time has passed (warm-up not counted) ...
        rounds: ... but for at least and at most so many rounds. An even number is done, so that each order occurs
            equally often.
        longest: after so many seconds two rounds are enough.
        warmup: calls of each step before, unmeasured.
        on_round: called after each.

    Returns:
        By name, the samples in the order of rounds: index i of all names belongs together.
    """
    for _ in range(warmup):
        for step in steps.values():
            clock(step)
    least, most = ((n + 1) // 2 * 2 for n in rounds)
    found: dict[str, list[Sample]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall on one contender by chance
    try:
        begin = time.perf_counter()
        for index in range(most):
            passed = time.perf_counter() - begin
            enough = passed > longest if 0 < index < least else passed > seconds
            if index > 0 and index % 2 == 0 and enough:
                break
            for name in in_turn(list(steps), index):
                found[name].append(clock(steps[name]))
            if on_round is not None:
                on_round(min(1.0, max((index + 1) / most, min((index + 1) / least, passed / max(seconds, 1e-9)))))
    finally:
        if collecting:
            gc.enable()
    return found
