"""The report's tables, in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from benchmarks.evidence.comparison import FACTOR_NAMES, FACTORS, Cell, Evidence
from benchmarks.evidence.presets import SCENARIOS, Share
from benchmarks.evidence.schedules import ABLATED, ABLATIONS, LOSS_DRIVEN, SCHEDULES, ablations_of
from benchmarks.evidence.statistics import Interval, Paired

BASELINES = ("linear", "cosine")
Rows = Iterable[Sequence[str]]
#: Multiple of the best LR and scenario, by what a table calls them.
CONDITIONS: dict[str, tuple[float, str]] = {
    "best LR": (1.0, "clean"),
    **{f"{FACTOR_NAMES[factor]} x LR": (factor, "clean") for factor in FACTORS if factor != 1.0},
    **{name: (1.0, name) for name in SCENARIOS},
}


def markdown(columns: Sequence[str], rows: Rows) -> str:
    """A table; the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def loss(number: float) -> str:
    """In nats, with so many digits that seeds differ."""
    return "broke off" if math.isinf(number) else f"{number:.4f}"


def interval(found: Interval, digits: Callable[[float], str] = loss) -> str:
    """Median [low, high]."""
    return f"{digits(found.median)} [{digits(found.low)}, {digits(found.high)}]"


def signed(number: float) -> str:
    """A difference."""
    return f"{number:+.4f}" if math.isfinite(number) else ("+inf" if number > 0 else "-inf")


def difference(found: Paired | None) -> str:
    """Median difference [interval], the seeds with a smaller loss; bold where the interval leaves out 0."""
    if found is None:
        return ""
    text = f"{interval(found.difference, signed)} {found.wins}/{found.wins + found.losses + found.ties}"
    return f"**{text}**" if found.verdict in ("better", "worse") else text


def failures(cell: Cell) -> str:
    """How many failed, and how many are missing."""
    missing = cell.wanted - len(cell.losses)
    return (f"{cell.failed} of {len(cell.losses)}" if cell.failed else "") + (
        f" ({missing} to come)" if missing else ""
    )


def overview(evidence: Evidence) -> str:
    """Each schedule at its best LR on each task: median difference to linear as a percentage of linear's median."""
    shares = [share for share in evidence.tasks() if evidence.cell(share, "linear") is not None]
    rows = []
    for name in SCHEDULES:
        cells = [_relative(evidence, share, name) for share in shares]
        shown = [percent for percent, _ in cells if percent is not None]
        if shown and name != "linear" and name not in ABLATIONS:
            rows.append((sum(shown) / len(shown), len(shown), [name, *(text for _, text in cells)]))
    # Those that are missing on a task come after those that are not: a mean over fewer tasks is another mean.
    ordered = sorted(rows, key=lambda row: (-row[1], row[0]))
    columns = ["difference to linear, %", *(share.task for share in shares), "mean"]
    return markdown(columns, [[*cells, f"{mean:+.1f}"] for mean, _, cells in ordered])


def added(evidence: Evidence, base: str) -> str:
    """What GreedyLR adds to a step schedule: difference to that alone, as a percentage of its loss."""
    shares, rows = evidence.tasks(), []
    for label, (factor, where) in CONDITIONS.items():
        cells = [_relative(evidence, share, f"greedy-{base}", base, factor, where)[1] for share in shares]
        if any(cells):
            rows.append([label, *cells])
    return markdown([f"greedy-{base} less {base}, %", *(share.task for share in shares)], rows)


def _relative(
    evidence: Evidence, share: Share, name: str, base: str = "linear", factor: float = 1.0, where: str = "clean"
) -> tuple[float | None, str]:
    """Median difference as a percentage of the base's median; None where the base broke off, too, or is missing."""
    pair = evidence.against(share, name, base, factor, where)
    theirs = evidence.cell(share, base, factor, where)
    if pair is None or theirs is None:
        return None, ""
    if math.isinf(theirs.interval.median) or math.isinf(pair.difference.median):
        return None, "broke off"
    percent = 100 * pair.difference.median / theirs.interval.median
    return percent, f"**{percent:+.1f}**" if pair.verdict in ("better", "worse") else f"{percent:+.1f}"


def tuned(evidence: Evidence, share: Share) -> str:
    """Each schedule at its best LR, the best first."""
    rows = []
    for name in evidence.compared(share, share.schedules):
        cell = evidence.cell(share, name)
        assert cell is not None
        against = [difference(evidence.against(share, name, base)) if name != base else "" for base in BASELINES]
        rows.append([name, f"{cell.lr:g}", interval(cell.interval), *against, failures(cell)])
    heads = [f"less that of {base}, seeds with less" for base in BASELINES]
    return markdown(["schedule", "LR", "held-out loss", *heads, "failed"], rows)


def wrong_lr(evidence: Evidence, share: Share) -> str:
    """Median loss at multiples of the best LR, the least first by the worst of 1/3 and 3."""
    rows = []
    for name in dict.fromkeys((*share.third, *share.tenth)):
        cells = [evidence.cell(share, name, factor) for factor in FACTORS]
        if cells[1] is None or cells[3] is None:
            continue
        worst = max(cells[1].interval.median, cells[3].interval.median)
        against = [
            difference(evidence.against(share, name, "linear", f)) if name != "linear" else "" for f in (1 / 3, 3.0)
        ]
        rows.append((worst, [name, *map(_with_failures, cells), *against]))
    heads = [f"{FACTOR_NAMES[factor]} x LR" for factor in FACTORS]
    return markdown(
        ["schedule", *heads, "less linear's, 1/3 x LR", "less linear's, 3 x LR"],
        [row for _, row in sorted(rows, key=lambda pair: pair[0])],
    )


def _with_failures(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return loss(cell.interval.median) + (f" ({cell.failed} failed)" if cell.failed else "")


def scenario(evidence: Evidence, share: Share, name: str) -> str:
    """Schedules at the LR that was best without the disturbance."""
    rows = []
    for schedule in evidence.disturbed(share, name):
        cell = evidence.cell(share, schedule, scenario=name)
        assert cell is not None
        against = [
            difference(evidence.against(share, schedule, base, scenario=name)) if schedule != base else ""
            for base in BASELINES
        ]
        rows.append([schedule, f"{cell.lr:g}", interval(cell.interval), *against, failures(cell)])
    heads = [f"less that of {base}, seeds with less" for base in BASELINES]
    return markdown(["schedule", "LR", "held-out loss", *heads, "failed"], rows)


def ablations(evidence: Evidence, share: Share, base: str) -> str:
    """Variants of GreedyLR against the one that they vary, at the same LR and seeds."""
    rows = []
    standard = f"greedy-{base}"
    for name in (standard, *ablations_of(base)):
        cell = evidence.cell(share, name)
        if cell is None:
            continue
        others = [evidence.against(share, name, standard, factor) for factor in (1 / 3, 1.0, 3.0)]
        rows.append([name, interval(cell.interval), *(difference(o) if name != standard else "" for o in others)])
    heads = [f"difference at {FACTOR_NAMES[factor]} x LR" for factor in (1 / 3, 1.0, 3.0)]
    return markdown(["variant", "held-out loss at the best LR", *heads], rows)


def verdicts(evidence: Evidence, baseline: str) -> str:
    """How often each loss-driven schedule was better, as good and worse than a baseline, over tasks."""
    rows = []
    for name in LOSS_DRIVEN:
        cells = []
        for factor, where in CONDITIONS.values():
            found = [evidence.against(share, name, baseline, factor, where) for share in evidence.tasks()]
            counts = Counter(pair.verdict for pair in found if pair is not None and pair.verdict != "few")
            cells.append(f"{counts['better']}-{counts['tie']}-{counts['worse']}" if counts else "")
        if any(cells):
            rows.append([name, *cells])
    return markdown(["better-tie-worse", *CONDITIONS], rows)


def has_ablations(evidence: Evidence, share: Share) -> list[str]:
    """Bases of which variants are finished."""
    return [base for base in ABLATED if any(evidence.cell(share, name) for name in ablations_of(base))]
