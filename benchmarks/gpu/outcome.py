"""How stages ended: a table, an exit code, and files with all that was printed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass
class Done:
    """How one command ended."""

    argv: list[str]
    outcome: str
    detail: str
    begin: float
    seconds: float
    output: str


@dataclass
class Result:
    """How a stage ended; `detail` says why, in a few words."""

    name: str
    outcome: str
    detail: str
    seconds: float
    commands: list[Done] = field(default_factory=list)


def counted(output: str) -> str:
    """The sum of what runs of pytest counted; empty if there was none."""
    totals: dict[str, int] = {}
    for line in output.splitlines():
        if re.search(r"\d+ \w+.* in \d[\d.]*s", line):
            for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)\b", line):
                totals[what.rstrip("s")] = totals.get(what.rstrip("s"), 0) + int(count)
    return ", ".join(f"{count} {what}" for what, count in totals.items())


def table(results: Sequence[Result]) -> str:
    """Outcome, seconds, stage and detail, one line each, and how many of each there were."""
    width = max((len(result.name) for result in results), default=0)
    lines = [
        f"{result.outcome:8}{result.seconds:6.1f} s  {result.name:{width}}  {result.detail}".rstrip()[:200]
        for result in results
    ]
    counts = [(outcome, sum(result.outcome == outcome for result in results)) for outcome in (PASSED, FAILED, SKIPPED)]
    return "\n".join([*lines, ", ".join(f"{count} {outcome}" for outcome, count in counts)])


def exit_code(results: Sequence[Result]) -> int:
    """1 if a stage failed, otherwise 0."""
    return int(any(result.outcome == FAILED for result in results))


def write(results: Sequence[Result], folder: Path, name: str, **more: Any) -> None:
    """`name.json` with the outcome of every stage and process, and `name.log` with all that they printed."""
    stages = [
        {
            "name": result.name,
            "outcome": result.outcome,
            "detail": result.detail,
            "seconds": round(result.seconds, 2),
            "commands": [
                {"argv": one.argv, "outcome": one.outcome, "detail": one.detail, "seconds": round(one.seconds, 2)}
                for one in result.commands
            ],
        }
        for result in results
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**more, "stages": stages}, indent=1) + "\n")
    parts = [
        f"===== {result.name}: {one.outcome} {one.detail}\n$ {' '.join(one.argv)}\n{one.output}\n"
        for result in results
        for one in result.commands
    ]
    (folder / f"{name}.log").write_text("".join(parts))
