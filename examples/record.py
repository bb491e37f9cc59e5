"""`run.jsonl`: one line per optimizer step, kept in step with the checkpoint; what both runs' lines say together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from greedylr_fused.mirror import Metrics

from checkpoint import write_atomically
from errors import WriteError

NAME = "run.jsonl"
Row = dict[str, Any]


class Record:
    """The lines of a run, in memory and on disk.

    Args:
        folder: the run's folder; None on the ranks that write nothing.
        steps: steps done by each trainer, skipped ones included; lines of later ones, from after the checkpoint, are
            dropped.
    """

    def __init__(self, folder: Path | None, steps: dict[str, int]) -> None:
        self._path = folder / NAME if folder else None
        self.rows: list[Row] = []
        self._written = 0
        self._last = steps
        if self._path is None:
            return
        lines = self._path.read_text().splitlines() if any(steps.values()) and self._path.exists() else []
        self.rows = [row for row in map(_parsed, lines) if row and row["step"] <= steps.get(row["run"], 0)]
        kept = "".join(map(_line, self.rows))
        write_atomically(self._path, lambda file: file.write(kept.encode()))
        self._written = len(self.rows)

    def add(self, run: str, metrics: Metrics, *, skipped: bool) -> None:
        """Take down what has arrived from the device; nothing if that is the step of the last line.

        Args:
            run: the trainer's name.
            metrics: its latest; `step` and `skipped` together number the steps.
            skipped: the last step was skipped. Its loss is null then: what `metrics` has is of an earlier step.
        """
        step = metrics.step + metrics.skipped
        if step <= self._last[run]:
            return
        self._last[run] = step
        row = {
            "run": run,
            "step": step,
            "loss": None if skipped else finite_or_none(metrics.loss),  # nats per byte
            "smoothed_loss": None if skipped else finite_or_none(metrics.smoothed_loss),
            # This step's comparison: `best` is the value compared.
            "better": None if skipped else metrics.best == metrics.smoothed_loss,
            "next_lr": metrics.lr[0],
            "grad_norm": finite_or_none(metrics.grad_norm),
            "skipped": metrics.skipped,  # so far
        }
        self.rows.append(row)

    def add_held_out(self, run: str, step: int, bits: float) -> None:
        """Take down a held-out loss in bits per byte; null if it is not finite."""
        self.rows.append({"run": run, "step": step, "held_out_bits_per_byte": finite_or_none(bits)})

    def flush(self) -> None:
        """Bring the file up to date.

        Raises:
            WriteError: it cannot be; a line cut short is dropped when the run goes on.
        """
        new = "".join(map(_line, self.rows[self._written :]))
        self._written = len(self.rows)
        if self._path is None or not new:
            return
        try:
            with self._path.open("a") as file:
                file.write(new)
        except OSError as error:
            raise WriteError(f"{self._path}: not written: {error.strerror}; what was saved before is whole") from None

    def series(self, run: str, key: str) -> tuple[list[int], list[Any]]:
        """Steps and values of one run, where there is a value."""
        found = [(row["step"], row[key]) for row in self.rows if row["run"] == run and row.get(key) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def first_difference(self, key: str) -> int | None:
        """First step at which both runs have a value and it is not the same, bit for bit."""
        ours, theirs = (dict(zip(*self.series(run, key), strict=True)) for run in ("fused", "torch"))
        return next((step for step in ours if step in theirs and ours[step] != theirs[step]), None)


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:  # the last line, if the process was killed while writing it
        return None
    return row if isinstance(row, dict) and {"run", "step"} <= row.keys() else None


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def finite_or_none(value: float) -> float | None:
    """What JSON can hold of a number: NaN and infinities become null."""
    return value if math.isfinite(value) else None
