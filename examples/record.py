"""`run.jsonl`: one line per optimizer step, kept in step with the checkpoint; what both runs' lines say together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from greedylr_fused.mirror import Metrics

from checkpoint import write_atomically

NAME = "run.jsonl"
Row = dict[str, Any]


class Record:
    """The lines of a run, in memory and on disk.

    Args:
        folder: the run's folder.
        steps: steps done by each trainer, skipped ones included; lines of later ones, from after the checkpoint, are
            dropped.
    """

    def __init__(self, folder: Path, steps: dict[str, int]) -> None:
        path = folder / NAME
        lines = path.read_text().splitlines() if any(steps.values()) and path.exists() else []
        self.rows = [row for row in map(_parsed, lines) if row and row["step"] <= steps.get(row["run"], 0)]
        kept = "".join(_line(row) for row in self.rows)
        write_atomically(path, lambda file: file.write(kept.encode()))
        self._last = steps
        self._file = path.open("a")

    def add(self, run: str, metrics: Metrics, *, skipped: bool) -> None:
        """Write what has arrived from the device; nothing if that is the step written last.

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
        self._write(row)

    def add_held_out(self, run: str, step: int, bits: float) -> None:
        """Write a held-out loss in bits per byte; null if it is not finite."""
        self._write({"run": run, "step": step, "held_out_bits_per_byte": finite_or_none(bits)})

    def _write(self, row: Row) -> None:
        self.rows.append(row)
        self._file.write(_line(row))

    def flush(self) -> None:
        """Bring the file up to date, before a checkpoint is saved."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

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
