"""`run.jsonl`: one line per optimizer step, kept in step with the checkpoint; what both runs' lines say together.

With --record-norms also `norms.jsonl`, the gradient norms of each step, as `greedylr_fused.telemetry` writes them.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from greedylr_fused import FusedAdamW
from greedylr_fused.step.mirror import Metrics
from greedylr_fused.telemetry import Recorder

from checkpoint import write_atomically
from config import Config
from errors import WriteError

NAME, NORMS = "run.jsonl", "norms.jsonl"
Row = dict[str, Any]


class Record:
    """The lines of a run, in memory and on disk.

    Args:
        folder: the run's folder; None on the ranks that write nothing.
        steps: steps done by each trainer, skipped ones included; lines of later ones, from after the checkpoint, are
            dropped.
        config: the run's options.
    """

    def __init__(self, folder: Path | None, steps: dict[str, int], config: Config) -> None:
        self._path = folder / NAME if folder else None
        self._norms_path = folder / NORMS if folder else None
        self._norms: Recorder | None = None
        self.rows: list[Row] = []
        self._written = 0
        self._last = steps
        self._loss_driven = config.loss_driven
        if self._path is not None:
            self.rows = _kept(self._path, steps)
            self._written = len(self.rows)
        # A schedule that the loss drives compares means over this window; beside others they are taken here.
        self._windows: dict[str, deque[float]] = {run: deque(maxlen=config.window) for run in steps}
        self._parts: dict[str, Any] = {}
        for row in self.rows:
            if row.get("loss") is not None:
                self._window(row["run"], row).append(row["loss"])

    def record_norms(self, optimizer: FusedAdamW) -> None:
        """Let each step measure the norms of its gradients; the first rank writes them down. All must call it."""
        if self._norms_path is not None:
            _kept(self._norms_path, self._last)
        sinks = [] if self._norms_path is None else [self._norms_path]
        self._norms = Recorder(optimizer, *sinks, run="fused", grad_norms=True)

    def _window(self, run: str, told: Row) -> deque[float]:
        """Of the losses of a run, or of one trial, or of the training after it."""
        part = told.get("stage"), told.get("trial")
        if part != self._parts.setdefault(run, part):
            self._windows[run].clear()
            self._parts[run] = part
        return self._windows[run]

    def add(self, run: str, metrics: Metrics, *, skipped: bool, told: Row) -> Metrics:
        """Take down what has arrived from the device; nothing if that is the step of the last line.

        Args:
            run: the trainer's name.
            metrics: its latest; `step` and `skipped` together number the steps.
            skipped: the last step was skipped. Its loss is null then: what `metrics` has is of an earlier step.
            told: what else is to stand in its line: stage and trial of a search, the trial's LR, and in its last step
                the loss that it foresees.

        Returns:
            The metrics with the mean over the window as `smoothed_loss`, whatever the schedule.
        """
        step = metrics.step + metrics.skipped
        new = step > self._last[run]
        metrics = self._smoothed(metrics, self._window(run, told), new=new and not skipped)
        if not new:
            return metrics
        self._last[run] = step
        row = {
            "run": run,
            "step": step,
            "loss": None if skipped else finite_or_none(metrics.loss),  # nats per byte
            "smoothed_loss": None if skipped else finite_or_none(metrics.smoothed_loss),
            # This step's comparison: `best` is the value compared.
            "better": metrics.best == metrics.smoothed_loss if self._loss_driven and not skipped else None,
            "next_lr": metrics.lr[0],
            "grad_norm": finite_or_none(metrics.grad_norm),
            "skipped": metrics.skipped,  # so far
        }
        if metrics.phase is not None:
            row |= {"phase": metrics.phase, "level": metrics.level}
        self.rows.append(row | told)
        return metrics

    def _smoothed(self, metrics: Metrics, window: deque[float], *, new: bool) -> Metrics:
        if self._loss_driven:
            return metrics
        if new and math.isfinite(metrics.loss):
            window.append(metrics.loss)
        return replace(metrics, smoothed_loss=math.fsum(window) / len(window) if window else math.nan)

    def add_held_out(self, run: str, step: int, bits: float) -> None:
        """Take down a held-out loss in bits per byte; null if it is not finite."""
        self.rows.append({"run": run, "step": step, "held_out_bits_per_byte": finite_or_none(bits)})

    def close(self) -> None:
        """Record no more norms: training is over, and steps that follow measure something else."""
        if self._norms is not None:
            self._norms.close()
            self._norms = None

    def flush(self) -> None:
        """Bring the files up to date.

        Raises:
            WriteError: it cannot be; a line cut short is dropped when the run goes on.
        """
        if self._norms is not None:
            self._norms.drain(wait=True)
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


def _kept(path: Path, steps: dict[str, int]) -> list[Row]:
    """The lines up to these steps, which are all that stays in the file."""
    lines = path.read_text().splitlines() if any(steps.values()) and path.exists() else []
    rows = [row for row in map(_parsed, lines) if row and row["step"] <= steps.get(row["run"], 0)]
    kept = "".join(map(_line, rows))
    write_atomically(path, lambda file: file.write(kept.encode()))
    return rows


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
