"""Finished runs, a JSON line each: added as they end, so that a run of days can be cut at any moment and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import Key, Run

FIELDS = ("task", "schedule", "lr", "seed", "scenario", "steps")


class Results:
    """The lines of a file.

    Args:
        path: of the file; it need not exist.
        commit: of the code that runs now, or None to read only.
        mix: take lines of other commits for done, too.

    Raises:
        ValueError: a line is damaged, or of another commit and `mix` is not set.
    """

    def __init__(self, path: Path, commit: str | None = None, mix: bool = False) -> None:
        self.path, self._commit = path, commit
        self.records: dict[Key, dict[str, Any]] = {}
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                record = json.loads(line)
                key = Run(**{name: record[name] for name in FIELDS}, storage=record.get("storage", "fp32")).key
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} line {number}: {error!r}; drop that line, and it is run again") from None
            if commit is not None and record["commit"] != commit and not mix:
                raise ValueError(
                    f"{path}: expected runs of this commit, {commit}, got ones of commit {record['commit']}; go on "
                    "from a checkout of the latter, begin another file with --out, or take these runs for done with "
                    "--mix-commits"
                )
            self.records[key] = record

    def get(self, run: Run) -> dict[str, Any] | None:
        """The record of a run, or None."""
        return self.records.get(run.key)

    def commits(self) -> list[str]:
        """Of all lines."""
        return sorted({record["commit"] for record in self.records.values()})

    def add(self, run: Run, outcome: dict[str, Any]) -> None:
        """Write a line that is there even if the machine stops."""
        record = run.as_dict() | {"commit": self._commit} | outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[run.key] = record

    def repair(self) -> None:
        """Cut off a last line that was only begun, so that the next one does not go on in it."""
        if self.path.exists():
            whole = "".join(f"{line}\n" for line in _whole_lines(self.path)).encode()
            if len(whole) < self.path.stat().st_size:
                os.truncate(self.path, len(whole))


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    *lines, _begun = path.read_text().split("\n")
    return lines
