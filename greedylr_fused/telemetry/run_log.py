"""`run.jsonl`, as a recorder writes it: one JSON object per optimizer step, appended.

What a killed process left after the last whole line is removed by the next process that appends.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from greedylr_fused.telemetry.history import Step

#: Bytes at the end of a file in which a line that was cut short is looked for.
_TAIL = 1 << 16


class RunLog:
    """File to which a line per step is appended.

    Args:
        path: of the file; it is created, but not its folder.
        run: name of the run in each line, where a file has several; None for none.
        norms: whether L1 norms are recorded.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file is of another kind.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str | None, norms: bool) -> None:
        self.path = Path(path)
        self._run = {} if run is None else {"run": run}
        self._norms = norms
        self._lines: list[str] = []
        if not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist; create that first", str(self.path))
        with self.path.open("ab"):
            pass
        _check_end(self.path)

    def put(self, step: Step) -> None:
        """Queue a step, to be written by `flush`."""
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
        row["skipped"], row["skipped_spikes"] = metrics.skipped, metrics.skipped_spikes
        if not math.isnan(metrics.tuner_scale):
            row["tuner_scale"] = metrics.tuner_scale
        if metrics.phase is not None:
            row["phase"], row["level"] = metrics.phase, metrics.level
        if step.event is not None:
            row["event"] = step.event
        if step.rolled_back:
            row["rolled_back"] = True
        self._line(row)

    def flush(self) -> None:
        """Write the steps in the queue.

        Raises:
            OSError: nothing was written; the lines are kept for the next call.
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
        """Number of lines that are not in the file yet."""
        return len(self._lines)

    def _line(self, row: dict[str, Any]) -> None:
        self._lines.append(json.dumps(self._run | row, allow_nan=False) + "\n")


def _write(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _check_end(path: Path) -> None:
    """Remove what a killed process left after the last whole line.

    Raises:
        ValueError: the file is of another kind; it is left as it is.
    """
    with path.open("r+b") as file:
        first = file.read(1)
        if first not in (b"", b"{"):
            raise ValueError(
                f"{path}: expected a new file or a run.jsonl, whose lines are JSON objects, got one that begins with "
                f"{first!r}; choose another name"
            )
        size = file.seek(0, os.SEEK_END)
        begin = max(0, size - _TAIL)
        file.seek(begin)
        tail = file.read()
        last = tail[tail.rfind(b"\n") + 1 :]
        if last and parsed_line(last) is not None:
            file.write(b"\n")  # a whole line, but for its end
        elif last:
            file.truncate(size - len(last))


def parsed_line(line: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line: empty for an empty line, None for a damaged one."""
    try:
        row = json.loads(line) if line.strip() else {}
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _finite(value: float) -> float | None:
    """Return a number as JSON can hold it: NaN and infinities become null."""
    return value if math.isfinite(value) else None
