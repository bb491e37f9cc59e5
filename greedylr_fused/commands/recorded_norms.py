"""Gradient norms out of what a run left behind: its `run.jsonl`, or a checkpoint of an optimizer that recorded them."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.norms import from_text
from greedylr_fused.schedules.checks import MAX_STEPS

#: Keys of one line of a `run.jsonl`, and the column of `opt.grad_norms()` that each is.
KEYS = ("grad_norm", "grad_norm_l1")


@dataclass(frozen=True)
class Recorded:
    """The norms of one run."""

    norms: Tensor
    """float64 [steps, 2]: L2 and L1; NaN where there is none."""
    run: str
    """Which of the runs in the file."""


def read(path: str | Path, run: str | None = None) -> Recorded:
    """The norms in a file.

    Args:
        path: `run.jsonl`, one JSON object per line with the norms of a step, "grad_norm" (L2) and "grad_norm_l1", and
            if it has them the number of the "step" and the name of the "run"; lines without norms are passed over, and
            so are runs without any beside one with some; of a step written twice the last line counts. Or what
            `torch.save` wrote: the state_dict of an optimizer with `record_grad_norms=`, or something that contains it.
        run: which one, if the file has several: "run" of the lines, or where in the checkpoint the optimizer is.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no norms, damaged ones, or those of several runs; names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: got a folder, allowed is a run.jsonl or a file of torch.save(); name the file in it (for a "
            "folder of torch.distributed.checkpoint, first run: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {path} checkpoint.pt)"
        )
    with path.open("rb") as file:
        lines = file.read(64).lstrip().startswith(b"{")
    found = _of_lines(path) if lines else _of_checkpoint(path)
    if run is None and len(found) > 1 or run is not None and run not in found:
        got = "several runs" if run is None else f"no run {run!r}"
        raise ValueError(f"{path}: got {got}, allowed is one of {', '.join(found)}; choose one with --run")
    name = next(iter(found)) if run is None else run
    return Recorded(found[name], name)


def _of_lines(path: Path) -> dict[str, Tensor]:
    """Of each run, a row for every step from the first to the last that has a line."""
    runs: dict[str, dict[int, list[float]]] = {}
    for where, row in _rows(path):
        steps = runs.setdefault(str(row.get("run", "run")), {})
        step = row["step"] if "step" in row else next(reversed(steps), 0) + 1
        values = [row.get(key) for key in KEYS]
        whole = isinstance(step, int) and 0 <= step <= MAX_STEPS
        if not whole or not all(value is None or isinstance(value, (int, float)) for value in values):
            wrong = {key: row[key] for key in ("step", *KEYS) if key in row}
            allowed = 'a "step" from 0 to 2**25, and norms that are numbers or null'
            raise ValueError(f"{where}: got {wrong}, allowed is {allowed}; correct the line")
        steps[step] = [math.nan if value is None else float(value) for value in values]
    if not runs:
        raise ValueError(
            f'{path}: got no line with a gradient norm, allowed are the keys "grad_norm" (L2) and "grad_norm_l1" (L1); '
            "write them with each step, or give a checkpoint of an optimizer with record_grad_norms="
        )
    missing = [math.nan] * len(KEYS)
    found = {
        run: torch.tensor([steps.get(step, missing) for step in range(min(steps), max(steps) + 1)], dtype=torch.float64)
        for run, steps in runs.items()
    }
    return {run: norms for run, norms in found.items() if bool(norms.isfinite().any())} or found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines with a norm, and where each is. A last one that is cut short is none: the process was killed."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line or "{}")
        except ValueError:
            if number == len(lines):
                return
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: got {line[:60]!r}, allowed is one JSON object; correct the line")
        if row.keys() & set(KEYS):
            yield f"{path}, line {number}", row


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    """By the place of each optimizer in it, such as "trainers.fused.optimizer"."""
    try:
        # No code in the file is run. Mapped, where the format allows it: of many GiB only a few pages are looked at.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"{path}: got no checkpoint that can be read ({reason}), allowed is a run.jsonl or a file of torch.save() "
            "with tensors and plain Python data; save opt.state_dict() alone"
        ) from None
    optimizers = dict(_optimizers(content, ""))
    found = {
        place: _decoded(f'{path}: {place} param_groups[0]["control"]["grad_norms"]', own)
        for place, own in optimizers.items()
        if own is not None
    }
    if not found:
        got = "an optimizer without recorded norms" if optimizers else "no optimizer"
        raise ValueError(
            f"{path}: got {got}, allowed is a checkpoint of FusedAdamW(record_grad_norms=total_steps); train with that"
        )
    return found


def _optimizers(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Place and recorded norms (None without) of every optimizer's state_dict."""
    if not isinstance(content, dict):
        return
    groups = content.get("param_groups")
    if isinstance(groups, list) and groups and isinstance(groups[0], dict):
        control = groups[0].get("control")
        yield place or "optimizer", (control.get("grad_norms") or None) if isinstance(control, dict) else None
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _optimizers(value, f"{place}.{key}" if place else str(key))


def _decoded(where: str, text: Any) -> Tensor:
    """The norms in a text: base64 of the bytes of a float32 [steps, 2]."""
    try:
        return from_text(text).double()
    except (AttributeError, ValueError):  # no text, or no such text
        raise ValueError(
            f"{where}: got {str(text)[:40]!r}, allowed is base64 of float32 pairs, as FusedAdamW.state_dict() writes; "
            "take an earlier checkpoint"
        ) from None
