"""What a benchmark leaves behind: one JSON file, one table, and a live line while it runs.

`rich` draws the table and the bar where it is installed; plain lines do elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from greedylr_fused.commands.bench import Spread

Record = dict[str, Any]
#: Why a case was left out of a run that may take only so long.
OVER = "the time for this benchmark was over"


class Report:
    """The records of one benchmark with what they depend on.

    Args:
        benchmark: its name, which the file is called after.
        device: where it runs.
        config: the options it was run with.
    """

    def __init__(self, benchmark: str, device: torch.device, config: dict[str, Any]) -> None:
        self.benchmark = benchmark
        self.config = config
        self.environment = environment.stamp(device)
        self.records: list[Record] = []
        self.left_out: list[dict[str, str]] = []

    def add(self, **record: Any) -> None:
        """One line of results; values are what JSON knows."""
        self.records.append(record)

    def leave_out(self, what: str, why: str) -> None:
        """What was asked for and not measured, with the reason: it stays in the file. Once per pair."""
        entry = {"what": what, "why": why}
        if entry not in self.left_out:
            self.left_out.append(entry)

    def write(self, folder: Path) -> Path:
        """Write `<benchmark>.json` at once, replacing an older one; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        content = {
            "benchmark": self.benchmark,
            "environment": self.environment,
            "config": self.config,
            "records": self.records,
            "left_out": self.left_out,
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)
        return path


def load(path: Path) -> dict[str, Any]:
    """A result file, checked to be one.

    Raises:
        ValueError: it is not.
    """
    content = json.loads(path.read_text())
    missing = {"benchmark", "environment", "config", "records", "left_out"} - set(content)
    if missing:
        raise ValueError(
            f"{path}: expected a file written by benchmarks.report, got one without {', '.join(sorted(missing))}"
        )
    return dict(content)


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and percentiles for a record, in another unit."""
    return Spread.of(values).scaled(scale).as_dict()


def number(value: float | None, digits: int = 3) -> str:
    """For a table: so many significant digits, no exponent; a dash for None."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """To the terminal; the first column is text, the others are numbers."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        print(title)
        for row in [columns, *rows]:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


class Progress:
    """A bar on a terminal, otherwise a line per case. A context manager.

    Args:
        name: of the benchmark.
        cases: how many there will be.
    """

    def __init__(self, name: str, cases: int) -> None:
        self._name, self._cases, self._done = name, cases, 0
        self._begin = time.perf_counter()
        self._case = ""
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            self._bar = _rich_bar()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._cases, text="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text="")
            self._bar.stop()

    def case(self, name: str) -> None:
        """The next case begins."""
        self._case = name
        self.part(0.0)

    def part(self, share: float) -> None:
        """So much of the case is done, between 0 and 1."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done + share, text=self._case)

    def end_case(self) -> None:
        """The case is done."""
        self._done += 1
        self.part(0.0)
        if self._bar is None:
            passed = time.perf_counter() - self._begin
            print(f"{self._name} {self._done}/{self._cases} {passed:5.0f} s  {self._case}", file=sys.stderr, flush=True)


def _rich_bar() -> Any:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(24),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
    )
