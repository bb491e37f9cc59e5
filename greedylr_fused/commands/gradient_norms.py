"""The gradient norms of a run, read from its `run.jsonl`, each step once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.schedules import MAX_STEPS
from greedylr_fused.telemetry import recorded_run

#: Keys of a line, in the order of the columns that `Refined.from_norms` takes.
_KEYS = ("grad_norm", "grad_norm_l1")


def read(path: Path, run: str | None = None) -> tuple[str, Tensor]:
    """Read the name of a run, and the norms of its steps.

    Args:
        path: one JSON object per line, with the "step", the norms "grad_norm" (L2) and "grad_norm_l1", null where they
            were not finite, and the name of the "run" if there are several. Passed over are lines without norms, runs
            without a finite one if another run has some, and what a killed process left after the last whole line.
        run: name of the run, if the file has several.

    Returns:
        The name, and float64 [steps, 2]: L2 and L1 norms, NaN where there is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: no norms, damaged ones, those of several runs, or steps that are missing or there twice; names them.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a run.jsonl, got a folder; name the file in it")
    runs: dict[str, dict[int, list[float]]] = {}
    for number, row in recorded_run.rows(path):
        if row.keys() & {*_KEYS, "lost"}:
            _add(f"{path}, line {number}", row, runs.setdefault(str(row.get("run", "run")), {}))
    runs = {name: steps for name, steps in runs.items() if _any_finite(steps)} or runs
    if not runs:
        raise ValueError(
            f'{path}: expected lines with the keys "grad_norm" and "grad_norm_l1", got none; record them with '
            "Recorder(opt, path, grad_norms=True)"
        )
    if run is None and len(runs) > 1 or run is not None and run not in runs:
        got = "several runs" if run is None else f"no run {run!r}"
        raise ValueError(f"{path}: expected one of {', '.join(runs)}, got {got}; choose one with --run")
    name = next(iter(runs)) if run is None else run
    return name, torch.tensor(_whole(path, name, runs[name]), dtype=torch.float64, device="cpu")


def _add(where: str, row: dict[str, Any], steps: dict[int, list[float]]) -> None:
    """Add the norms of a line.

    Raises:
        ValueError: the line is not of a step, of one that was lost, or of one that is there.
    """
    step, values = row.get("step"), [row.get(key) for key in _KEYS]
    numbers = all(value is None or isinstance(value, (int, float)) for value in values)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEPS or not numbers:
        wrong = {key: row[key] for key in ("step", *_KEYS) if key in row}
        raise ValueError(
            f'{where}: expected a "step" from 0 to {MAX_STEPS} and norms that are numbers or null, got {wrong}; '
            "correct the line"
        )
    if "lost" in row:
        raise ValueError(
            f"{where}: expected each step once, got {row['lost']} steps up to {step} that were lost; record with a "
            "larger capacity, or drain() more often"
        )
    if step in steps:
        raise ValueError(
            f"{where}: expected each step once, got step {step} a second time, as of a run that was begun again, or "
            "went on from a checkpoint; delete the earlier lines, from that step on"
        )
    steps[step] = [math.nan if value is None else float(value) for value in values]


def _any_finite(steps: dict[int, list[float]]) -> bool:
    return any(math.isfinite(value) for row in steps.values() for value in row)


def _whole(path: Path, name: str, steps: dict[int, list[float]]) -> list[list[float]]:
    """Return the rows in the order of their steps.

    Raises:
        ValueError: steps are missing between the first and the last.
    """
    first, last = min(steps), max(steps)
    if len(steps) != last - first + 1:
        missing = [step for step in range(first, last) if step not in steps]
        raise ValueError(
            f"{path}: expected each step of the run {name!r} from {first} to {last} once, got no line of "
            f"{len(missing)} of them, the first of step {missing[0]}; record the whole run"
        )
    return [steps[step] for step in range(first, last + 1)]
