"""REPORT.md of the preset `find`, with its picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.evidence import find_tables, tables
from benchmarks.evidence.comparison import FACTOR_NAMES, FACTORS, Evidence
from benchmarks.evidence.finders import ADALRS_CHOICES, FINDERS
from benchmarks.evidence.found import Found
from benchmarks.evidence.pictures import available, logarithmic, panels, save
from benchmarks.evidence.schedules import ABOUT
from benchmarks.evidence.tasks import TASKS
from benchmarks.markdown import rewritten

#: Written by a person after seeing the tables.
CONCLUSIONS = "CONCLUSIONS.md"
#: Of the marks between which other documents have the summary.
MARKS = "evidence of finding"
#: What was asked afterwards, with results of the first part seen: of what, its variants.
VARIANTS = {
    "Windows paired on the same batches": ("climb", ("climb replay", "climb paired")),
    "What AdaLRS leaves open": ("adalrs", tuple(ADALRS_CHOICES)),
    "Weight decay that follows the LR": ("linear", ("linear adamc",)),
}
#: Tasks of the first part, by which it is decided what is run further.
FIRST = ("gpt-tiny", "convnet", "finetune", "mlp")


def write(folder: Path, evidence: Evidence, protocol: Iterator[str]) -> list[Path]:
    """Write `REPORT.md` and its picture beside the results; returns their paths."""
    found = Found(evidence)
    drawn = [path for path in (folder / "wrong_lr.png",) if draw(found, path)]
    path = folder / "REPORT.md"
    path.write_text("\n\n".join([*_parts(folder, found, bool(drawn)), "## What was run", *protocol]) + "\n")
    return [path, *drawn]


def into(document: str, evidence: Evidence) -> str:
    """The document with today's summary of the verdicts between its marks."""
    return rewritten(document, MARKS, find_tables.summary(Found(evidence)))


def _parts(folder: Path, found: Found, drawn: bool) -> Iterator[str]:
    evidence, name = found.evidence, found.evidence.results.path.name
    yield "# Finding the learning rate, or forgiving a wrong one"
    yield (
        "Written by `python -m benchmarks.convergence --preset find --report`. What is run, all measures and the rules "
        "of all verdicts were [written before](PLAN.md). The section Conclusions is by a person who has seen the rest, "
        f"which is computed from [{name}]({name})."
    )
    conclusions = folder / CONCLUSIONS
    yield "## Conclusions"
    yield conclusions.read_text().strip() if conclusions.exists() else f"None are written yet, in `{CONCLUSIONS}`."
    yield "## What a wrong LR costs `linear`"
    yield (
        "Held-out loss at that factor less that at the tuned LR, on the same seeds, median [interval]. Bold: the cost "
        "counts, or the LR of the factor was better."
    )
    yield find_tables.costs(found)
    yield "## Verdicts"
    yield (
        "Per task: whether the goal was reached; the controller against `linear`, both at their LR; the share of what "
        "a wrong LR costs `linear` that is recovered, at the factors whose cost counts."
    )
    yield find_tables.verdicts(found)
    first = [task for task in found.shares if task.task in FIRST]
    yield f"By the plan's rule the two to be run further: {', '.join(found.best(first)) or 'not known yet'}."
    if drawn:
        yield "![Held-out loss over the multiple of the LR](wrong_lr.png)"
    yield "## First in the documentation"
    yield "Each at its own LR times the factor, or under the disturbance, against `linear` in the same place; tasks."
    yield find_tables.first(found)
    yield f"By the plan's rule: {', '.join(found.first()) or '`linear` with a warm-up'}."
    for title, (of, names) in VARIANTS.items():
        yield f"## {title}"
        yield f"Held-out loss less that of `{of}`: at the LR, at a third and at 3 times it. Bold is told from 0."
        yield find_tables.variants(found, of, names)
    for share in found.shares:
        yield f"## {share.task}: {TASKS[share.task].about}"
        yield find_tables.task(found, share)
        yield tables.wrong_lr(evidence, share)
        text = find_tables.disturbed(found, share)
        if text.count("\n") > 1:
            yield "Disturbed, at the LR that was best without:"
            yield text


def about(evidence: Evidence) -> dict[str, str]:
    """What the schedules and controllers of a preset are."""
    used = {name for share in evidence.plan.preset.shares for name in share.schedules}
    used |= {name for share in evidence.plan.preset.shares for name in share.ablations}
    used |= {name for share in evidence.plan.preset.shares for _, name in share.disturbed}
    every = ABOUT | {name: finder.about for name, finder in FINDERS.items()}
    return {name: text for name, text in every.items() if name in used}


def draw(found: Found, path: Path) -> bool:
    """A panel per task: median loss of every controller over the factor of its LR."""
    evidence = found.evidence
    if not available():
        return False
    figure, axes = panels(len(found.shares), 5.2, 4.2)
    for axis, share in zip(axes, found.shares, strict=False):
        for index, name in enumerate(dict.fromkeys((*share.schedules, *share.third, *share.tenth))):
            cells = {factor: evidence.cell(share, name, factor) for factor in FACTORS}
            points = [(factor, cell.interval.median) for factor, cell in cells.items() if cell is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                style = "k--s" if name == "linear" else "-o" if name in FINDERS else "--s"
                color = {} if name == "linear" else {"color": f"C{index}"}
                axis.plot(xs, ys, style, markersize=3, label=name, **color)
        axis.set_xscale("log")
        axis.set_xticks(FACTORS, [FACTOR_NAMES[factor] for factor in FACTORS], minor=False)
        logarithmic(axis)
        axis.set_title(share.task, fontsize=9)
        axis.legend(fontsize=6)
        axis.grid(linewidth=0.3, which="both")
    return save(figure, path, "multiple of the LR; held-out loss at the end, nats", bool(found.shares))
