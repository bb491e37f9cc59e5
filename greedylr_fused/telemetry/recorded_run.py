"""The steps of a run, read from the `run.jsonl` of a recorder or of the main job, for the `plot` command.

A run that went on from a checkpoint has written some steps twice: a line supersedes all earlier lines of its run that
have its step or a later one. The last line of a killed process may be cut short; it is passed over.
"""

from __future__ import annotations

import itertools
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greedylr_fused.telemetry.history import CUT, EVENTS, RAISE, RESET
from greedylr_fused.telemetry.run_log import parsed_line

#: Entry of `Run.events` for a skipped step.
SKIP = "skip"


@dataclass
class Run:
    """The lines of one run, as columns; NaN where a line has no such number."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    loss: array[float] = field(default_factory=lambda: array("d"))
    smoothed_loss: array[float] = field(default_factory=lambda: array("d"))
    lrs: list[tuple[float, ...]] = field(default_factory=list)
    """LRs that the next step uses, one per parameter group."""
    skipped: array[int] = field(default_factory=lambda: array("q"))
    """Steps skipped so far."""
    events: list[str | None] = field(default_factory=list)
    """Decision of the loss in a step, None if there is none, or `SKIP`."""
    better: list[bool | None] = field(default_factory=list)
    """Whether the loss was better, where lines say so: those of the main job, which have no events."""
    lost: dict[int, int] = field(default_factory=dict)
    """Number of steps without a line in each gap, by the last step of the gap."""
    tells_decisions: bool = True
    """Whether all raises, cuts and resets are among the events."""

    def _columns(self) -> tuple[Any, ...]:
        return self.steps, self.loss, self.smoothed_loss, self.lrs, self.skipped, self.events, self.better

    def go_back(self, step: int) -> None:
        """Forget this step and those after it."""
        if self.steps and self.steps[-1] >= step:
            at = bisect_left(self.steps, step)
            for column in self._columns():
                del column[at:]
            self.lost = {last: count for last, count in self.lost.items() if last < step}

    def between(self, first: int | None, last: int | None) -> Run:
        """Return the part from one step through another; None leaves that end open."""
        begin = 0 if first is None else bisect_left(self.steps, first)
        end = len(self.steps) if last is None else bisect_left(self.steps, last + 1)
        steps, loss, smoothed, lrs, skipped, events, better = (column[begin:end] for column in self._columns())
        known = range(steps[0], steps[-1]) if steps else ()
        lost = {step: count for step, count in self.lost.items() if step in known}
        return Run(steps, loss, smoothed, lrs, skipped, events, better, lost, self.tells_decisions)

    def add(self, row: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            TypeError, ValueError, OverflowError: the line is not of a step.
        """
        step, skipped = row["step"], int(row.get("skipped") or 0)
        if isinstance(step, bool) or not isinstance(step, int):
            raise TypeError("step")
        self.go_back(step)
        if "lost" in row:
            self.lost[step] = int(row["lost"])
            return
        lr = row["lr"] if "lr" in row else row["next_lr"]
        skips = skipped > self.skipped[-1] if self.skipped else skipped == step  # as the first ones under AMP
        self.lrs.append(tuple(map(float, lr)) if isinstance(lr, list) and lr else (float(lr),))
        self.steps.append(step)
        self.loss.append(_number(row.get("loss")))
        self.smoothed_loss.append(_number(row.get("smoothed_loss")))
        self.skipped.append(skipped)
        self.events.append(SKIP if skips else row.get("event"))
        better = row.get("better")
        self.better.append(better if isinstance(better, bool) else None)

    def find_gaps(self) -> None:
        """Take steps without a line for lost, as those between the last line of a killed process and the checkpoint
        that the next one went on from; not where most lines are of steps that do not follow each other.
        """
        gaps = [(before, now) for before, now in itertools.pairwise(self.steps) if now > before + 1]
        if 2 * len(gaps) < len(self.steps):
            known = [(last - count, last) for last, count in self.lost.items()]
            for before, now in gaps:
                if not any(before <= first and last < now for first, last in known):
                    self.lost[now - 1] = now - 1 - before

    def find_decisions(self) -> None:
        """Take changed LRs for decisions, if lines say which loss was better but not what was decided. If one change
        cannot be a decision, since the LR also follows a curve, none is taken.
        """
        if all(value is None for value in self.better) or any(event in EVENTS for event in self.events):
            return
        found = list(self.events)
        for index, (before, now) in enumerate(itertools.pairwise(self.lrs), start=1):
            better = self.better[index]
            if now == before or better is None:
                continue
            if now < before:
                found[index] = CUT
            else:
                found[index] = RAISE if better else RESET
            if (better and now < before) or (found[index] == RESET and now != self.lrs[0]):
                self.tells_decisions = False
                return
        self.events = found


def read(path: str | os.PathLike[str]) -> dict[str, Run]:
    """Return the runs in a file by name, "run" where lines have none. Lines that are not of steps, such as those of a
    held-out loss, are passed over.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no steps, or a damaged line.
    """
    runs: dict[str, Run] = {}
    for number, row in rows(Path(path)):
        if "step" not in row or not ("lr" in row or "next_lr" in row or "lost" in row):
            continue
        name = str(row.get("run", "run"))
        if name not in runs:
            runs[name] = Run()
        try:
            runs[name].add(row)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{path}, line {number}: expected an integer as step and numbers or null as the rest, got "
                f"{str(row)[:80]}; correct the line"
            ) from None
    runs = {name: run for name, run in runs.items() if run.steps}
    for run in runs.values():
        run.find_decisions()
        run.find_gaps()
    if not runs:
        raise ValueError(
            f'{path}: expected JSON objects with "step", "loss" and "lr", one per line, as '
            "greedylr_fused.telemetry.Recorder(opt, path) writes them, got no line of a step; name the run.jsonl of a "
            "run"
        )
    return runs


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of each line. Only the last may be cut short, and is then left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: a damaged line.
    """
    with path.open(errors="replace") as file:
        damaged = None
        for number, line in enumerate(file, start=1):
            if damaged is not None:
                raise ValueError(damaged)
            row = parsed_line(line)
            if row is None:
                damaged = (
                    f"{path}, line {number}: expected one JSON object, got {line[:60].rstrip()!r}; correct the line, "
                    "or name the run.jsonl of a run"
                )
            else:
                yield number, row


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
