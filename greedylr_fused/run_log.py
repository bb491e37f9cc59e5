"""`run.jsonl`: one JSON object per optimizer step. Written here from a recorder, and read for the `plot` command.

A run that went on from a checkpoint has written some steps twice: a line supersedes all lines of its run, before it,
that have its step or a later one. The last line of a process that was killed may be cut short; it counts as not there.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greedylr_fused.history import Step

#: What `Run.events` has for a step that was skipped.
SKIP = "skip"
#: How much of a file's end is looked at for a line that was cut short, in bytes.
_TAIL = 1 << 16


class RunLog:
    """Appends a line per step to a file.

    Args:
        path: of the file; it is created, but not its folder.
        run: name of the run in each line, where a file has several; None for none.
        norms: whether L1 norms are recorded.

    Raises:
        OSError: it cannot be written.
        ValueError: it is a file of another kind.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str | None, norms: bool) -> None:
        self.path = Path(path)
        self._run = {} if run is None else {"run": run}
        self._norms = norms
        self._lines: list[str] = []
        with self.path.open("ab"):
            pass
        _check_end(self.path)

    def put(self, step: Step) -> None:
        """Take down a step, to be written by `flush`."""
        if step.lost:
            self._line({"step": step.number - 1, "lost": step.lost})
        metrics = step.metrics
        row: dict[str, Any] = {
            "step": step.number,
            "loss": None if step.skipped else _finite(metrics.loss),
            "smoothed_loss": None if step.skipped else _finite(metrics.smoothed_loss),
            "best": _finite(metrics.best),
            "lr": metrics.lr,
            "grad_norm": _finite(metrics.grad_norm),
        }
        if self._norms:
            row["grad_norm_l1"] = _finite(metrics.grad_norm_l1)
        row["skipped"] = metrics.skipped
        if step.event is not None:
            row["event"] = step.event
        self._line(row)

    def flush(self) -> None:
        """Write what was put since.

        Raises:
            OSError: nothing was written, and the lines are kept for the next time.
        """
        if not self._lines:
            return
        with self.path.open("ab", buffering=0) as file:
            begin = file.seek(0, os.SEEK_END)
            try:
                _write(file, "".join(self._lines).encode())
            except OSError:
                file.truncate(begin)  # or the next lines would follow half a line
                raise
        self._lines.clear()

    @property
    def waiting(self) -> int:
        """Lines that are not in the file."""
        return len(self._lines)

    def _line(self, row: dict[str, Any]) -> None:
        self._lines.append(json.dumps(self._run | row, allow_nan=False) + "\n")


@dataclass
class Run:
    """The lines of one run, as columns; NaN where a line has no such number."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    loss: array[float] = field(default_factory=lambda: array("d"))
    smoothed_loss: array[float] = field(default_factory=lambda: array("d"))
    lrs: list[tuple[float, ...]] = field(default_factory=list)
    """One per parameter group: what the next step uses."""
    skipped: array[int] = field(default_factory=lambda: array("q"))
    """So far."""
    events: list[str | None] = field(default_factory=list)
    """What was decided, or `SKIP`."""
    lost: dict[int, int] = field(default_factory=dict)
    """By the last step of each gap, for how many steps there are no lines."""

    def _columns(self) -> tuple[Any, ...]:
        return self.steps, self.loss, self.smoothed_loss, self.lrs, self.skipped, self.events

    def go_back(self, step: int) -> None:
        """Forget this step and those after it."""
        if self.steps and self.steps[-1] >= step:
            at = bisect_left(self.steps, step)
            for column in self._columns():
                del column[at:]
            self.lost = {last: count for last, count in self.lost.items() if last < step}

    def between(self, first: int | None, last: int | None) -> Run:
        """The part from one step through another."""
        begin = 0 if first is None else bisect_left(self.steps, first)
        end = len(self.steps) if last is None else bisect_left(self.steps, last + 1)
        steps, loss, smoothed, lrs, skipped, events = (column[begin:end] for column in self._columns())
        return Run(steps, loss, smoothed, lrs, skipped, events, self.lost)

    def add(self, row: dict[str, Any]) -> None:
        """Take a line.

        Raises:
            TypeError, ValueError: it is none of a step.
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
        self.lrs.append(tuple(map(float, lr)) if isinstance(lr, list) else (float(lr),))
        self.steps.append(step)
        self.loss.append(_number(row.get("loss")))
        self.smoothed_loss.append(_number(row.get("smoothed_loss")))
        self.skipped.append(skipped)
        self.events.append(SKIP if skips else row.get("event"))


def read(path: str | os.PathLike[str]) -> dict[str, Run]:
    """The runs in a file by name, "run" where lines have none. Lines of other things than steps are passed over, such
    as a held-out loss.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no steps, or a damaged line.
    """
    runs: dict[str, Run] = {}
    for where, row in _rows(Path(path)):
        if "step" not in row or not row.keys() & {"lost", "lr", "next_lr"}:
            continue
        try:
            runs.setdefault(str(row.get("run", "run")), Run()).add(row)
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: got {str(row)[:60]}, allowed is an integer as step and numbers or null beside; correct the "
                "line"
            ) from None
    runs = {name: run for name, run in runs.items() if run.steps}
    if not runs:
        raise ValueError(
            f'{path}: got no line of a step, allowed are JSON objects with "step", "loss" and "lr", one per line, '
            "as greedylr_fused.telemetry.Recorder(opt, path) writes them"
        )
    return runs


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and what is in it."""
    with path.open(errors="replace") as file:
        number, pending = 0, None
        for number, line in enumerate(file, start=1):  # noqa: B007
            if pending is not None:
                raise ValueError(pending)
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError:
                row = None
            where = f"{path}, line {number}"
            if isinstance(row, dict):
                yield where, row
            else:  # none, if it is the last one
                pending = f"{where}: got {line[:60]!r}, allowed is one JSON object; correct the line"


def _write(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _check_end(path: Path) -> None:
    """Take away what a process that was killed has left behind the last whole line.

    Raises:
        ValueError: the file is of another kind, and left as it is.
    """
    with path.open("r+b") as file:
        first = file.read(1)
        if first not in (b"", b"{"):
            raise ValueError(
                f"{path}: got a file that begins with {first!r}, allowed is a new one or a run.jsonl, whose lines are "
                "JSON objects; choose another name"
            )
        size = file.seek(0, os.SEEK_END)
        begin = max(0, size - _TAIL)
        file.seek(begin)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(begin + tail.rfind(b"\n") + 1)


def _finite(value: float) -> float | None:
    """What JSON can hold of a number: NaN and infinities become null."""
    return value if math.isfinite(value) else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
