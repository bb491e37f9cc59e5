"""REPORT.md of the preset `state`, and its table in other documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.evidence import state_tables
from benchmarks.evidence.formats import CONDITIONS, FORMATS
from benchmarks.evidence.plan import Plan
from benchmarks.evidence.results import Results
from benchmarks.evidence.state_tables import States
from benchmarks.evidence.statistics import LEVEL
from benchmarks.evidence.tables import markdown
from benchmarks.evidence.tasks import TASKS
from benchmarks.markdown import rewritten

#: Of the marks between which other documents have the table.
MARKS = "evidence of formats"


def write(folder: Path, plan: Plan, results: Results) -> Path:
    """Write REPORT.md beside the results; returns its path."""
    path = folder / "REPORT.md"
    path.write_text("\n\n".join(_parts(folder, States(plan, results))) + "\n")
    return path


def into(document: str, plan: Plan, results: Results) -> str:
    """The document with today's table of verdicts between its marks."""
    return rewritten(document, MARKS, state_tables.verdicts(States(plan, results)))


def _parts(folder: Path, states: States) -> Iterator[str]:
    yield "# What 8-bit moments and masters change in training"
    name = states.results.path.name
    yield (
        "Written by `python -m benchmarks.convergence --preset state --report`. What is run and what counts as good "
        f"enough was [written before](PLAN.md). A person's [conclusions](CONCLUSIONS.md). All else is computed from "
        f"[{name}]({name})."
    )
    yield "## Noise"
    yield state_tables.noise(states)
    yield "## Verdicts"
    yield (
        "Held-out loss at the end less that of float32 AdamW on the same seeds, mean ± standard deviation, in percent. "
        f"The bound is the one-sided {LEVEL:.0%} upper one of the mean (Student's t); passed is at most "
        f"+{state_tables.TOLERANCE:g} %."
    )
    yield state_tables.verdicts(states)
    yield "## What was run"
    yield from _protocol(folder, states)


def _protocol(folder: Path, states: States) -> Iterator[str]:
    records = list(states.results.records.values())
    minutes, left = sum(record["seconds"] for record in records) / 60, sum(1 for _ in states.plan.missing())
    yield (
        f"{len(records):,} runs of one thread each, {minutes:.0f} minutes of one core in all. {left} runs of this "
        "preset can begin and have not."
    )
    rows = [
        [share.task, f"{TASKS[share.task].parameters():,}", str(states.plan.preset.steps(share.task)), f"{share.lr:g}"]
        for share in states.shares
    ]
    yield markdown(["task", "parameters", "steps", "LR"], rows)
    yield markdown(["format", "what it is"], [[name, form.about] for name, form in FORMATS.items()])
    yield markdown(["condition", "what it is"], [[name, condition.about] for name, condition in CONDITIONS.items()])
    path = folder / "environment.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    if entries:
        machine = entries[-1]
        versions = {"Python": machine["python"], "torch": machine["torch"]} | machine.get("peers", {})
        yield (
            f"On {machine['device']}, "
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}, begun {entries[0]['date']}; "
            f"commit {', '.join(states.results.commits())}. [All of the environment](environment.json)."
        )
