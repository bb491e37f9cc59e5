"""REPORT.md: what was run, its tables and pictures, and what a person concluded from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evidence import find_report, pictures, state_report, tables
from benchmarks.evidence.comparison import Evidence
from benchmarks.evidence.plan import TUNING_SEED, Plan
from benchmarks.evidence.presets import SCENARIOS
from benchmarks.evidence.results import Results
from benchmarks.evidence.schedules import ABOUT, BASES, WARM_UP
from benchmarks.evidence.statistics import LEVEL
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.training import LAST

#: Written by a person after seeing the tables, and put before them; nothing is concluded by this program.
CONCLUSIONS = "CONCLUSIONS.md"


def write_report(folder: Path, plan: Plan) -> list[Path]:
    """Write `REPORT.md` beside the results, of schedules with pictures; returns all paths.

    Raises:
        FileNotFoundError: there are no results.
    """
    results = Results(folder / "results.jsonl")
    if not results.records:
        raise FileNotFoundError(f"{results.path}: expected a finished run, got none; run without --report first")
    if any(share.stored for share in plan.preset.shares):
        return [state_report.write(folder, plan, results)]
    evidence = Evidence(plan, results)
    if plan.preset.finds:
        return find_report.write(folder, evidence, _protocol(folder, evidence, find_report.about(evidence)))
    drawn = pictures.draw(evidence, folder)
    path = folder / "REPORT.md"
    path.write_text("\n\n".join(_parts(folder, evidence, {picture.stem for picture in drawn})) + "\n")
    return [path, *drawn]


def _parts(folder: Path, evidence: Evidence, drawn: set[str]) -> Iterator[str]:
    yield "# What each schedule is worth, and what the loss adds"
    yield (
        "Written by `python -m benchmarks.convergence --report`. The section Conclusions is by a person who has seen "
        f"the rest, which is computed from [{evidence.results.path.name}]({evidence.results.path.name})."
    )
    conclusions = folder / CONCLUSIONS
    yield "## Conclusions"
    yield conclusions.read_text().strip() if conclusions.exists() else f"None are written yet, in `{CONCLUSIONS}`."
    yield "## All schedules on all tasks"
    yield (
        "Held-out loss at the end, each schedule at its own best LR: the median difference to `linear` on the same "
        "seeds, as a percentage of the loss of `linear`. Negative is better than `linear`. Bold: the interval of the "
        "difference leaves out 0."
    )
    yield tables.overview(evidence)
    yield "## What the loss adds to a step schedule"
    yield (
        "GreedyLR with that schedule as its base, less the schedule alone, in percent of the loss of the latter; each "
        "at its own best LR times the factor. Negative: the loss helped. Bold as above."
    )
    for base in BASES:
        yield tables.added(evidence, base)
    yield "## How often the loss was worth it"
    yield (
        "Over tasks: better, tie or worse than the baseline, each at its own best LR times the factor, by the interval "
        "of the median difference on the same seeds. In the scenarios all have the LR that was best without them."
    )
    for baseline in tables.BASELINES:
        yield f"Against `{baseline}`:"
        yield tables.verdicts(evidence, baseline)
    yield from _section("Each at its best LR", evidence, drawn, "tuned", tables.tuned)
    yield from _section("At a wrong LR", evidence, drawn, "wrong_lr", tables.wrong_lr)
    yield from _scenarios(evidence, drawn)
    yield from _ablations(evidence, drawn)
    yield "## What was run"
    yield from _protocol(folder, evidence, ABOUT)


def _section(title: str, evidence: Evidence, drawn: set[str], picture: str, table: Any) -> Iterator[str]:
    yield f"## {title}"
    if picture in drawn:
        yield f"![{title}]({picture}.png)"
    if picture == "tuned" and "runs" in drawn:
        yield "![Losses and learning rates over a run](runs.png)"
    for share in evidence.tasks():
        text = table(evidence, share)
        if text.count("\n") > 1:
            yield f"### {share.task}: {TASKS[share.task].about}"
            yield text


def _scenarios(evidence: Evidence, drawn: set[str]) -> Iterator[str]:
    yield "## Disturbed"
    if "scenarios" in drawn:
        yield "![Differences to linear in each scenario](scenarios.png)"
    for name, about in SCENARIOS.items():
        for share in evidence.tasks():
            text = tables.scenario(evidence, share, name)
            if text.count("\n") > 1:
                yield f"### {name}, {share.task}: {about}"
                yield text


def _ablations(evidence: Evidence, drawn: set[str]) -> Iterator[str]:
    yield "## GreedyLR's options"
    yield (
        "One at a time differs from `GreedyLR(smooth=True, window_size=50, factor=0.95, patience=10, min_lr_ratio=0.1, "
        "max_lr_ratio=10)`, at the LR that is best for that. `window=0` is `smooth=False`."
    )
    if "ablations" in drawn:
        yield "![Differences to the defaults](ablations.png)"
    for share in evidence.tasks():
        for base in tables.has_ablations(evidence, share):
            yield f"### {share.task}, on {base}"
            yield tables.ablations(evidence, share, base)


def _protocol(folder: Path, evidence: Evidence, about: dict[str, str]) -> Iterator[str]:
    records = list(evidence.results.records.values())
    minutes, left = sum(record["seconds"] for record in records) / 60, sum(1 for _ in evidence.plan.missing())
    failed = sum(record["failed"] is not None for record in records)
    first = min(share.first_seed for share in evidence.plan.preset.shares)
    yield (
        f"{len(records):,} runs of one thread each, {minutes:.0f} minutes of one core in all. {failed} failed: their "
        "loss was not finite, or larger at the end than before the first step. Failed runs are counted with the loss "
        f"that they had, broken-off ones as infinite. {left} runs of this preset can begin and have not."
    )
    rows = [
        [share.task, f"{TASKS[share.task].parameters():,}", str(TASKS[share.task].batch)]
        + [str(evidence.plan.preset.steps(share.task)), str(len(own)), f"{seconds:.1f}"]
        for share in evidence.plan.preset.shares
        if (own := [record for record in records if record["task"] == share.task])
        for seconds in [sum(record["seconds"] for record in own) / len(own)]
    ]
    yield tables.markdown(["task", "parameters", "batch", "steps", "runs", "seconds of one core per run"], rows)
    yield (
        f"- Optimizer: FusedAdamW with `schedule=`, `step(loss=loss)` for all. Warm-up, where a schedule has one: "
        f"{WARM_UP:.0%} of the run.\n"
        "- Tuning: the grid of the task, a factor of about 3 between neighbours, extended while its end is best, then "
        f"half a step to each side of the best; seeds from {TUNING_SEED} on. "
        f"The comparison is on seeds from {first} on. Same seed: same start, same batches.\n"
        f"- Held-out loss: mean of those after {', '.join(f'{share:.0%}' for share in LAST)} of the steps, in nats.\n"
        f"- Intervals: {LEVEL:.0%}, bootstrap of the median. Of 5 seeds, from the least value to the largest: "
        "a difference counts if all five have its sign, and of schedules that are as good as each other one pair in "
        "sixteen would look different.\n"
        "- A number like 4/5 counts the seeds on which the schedule had the smaller loss."
    )
    yield tables.markdown(["schedule", "what it is"], [[name, text] for name, text in about.items()])
    path = folder / "environment.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    if entries:
        machine = entries[-1]
        yield (
            f"On {machine['device']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch "
            f"{machine['torch']}, from {entries[0]['date']} to {machine['date']}; commit "
            f"{', '.join(evidence.results.commits())}. [All of the environment](environment.json)."
        )
