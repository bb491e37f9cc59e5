"""The tables of the preset `find`, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.evidence.comparison import FACTOR_NAMES
from benchmarks.evidence.found import BASE, DISTURBED, OFF, SCHEDULES, Found
from benchmarks.evidence.presets import Share
from benchmarks.evidence.statistics import Interval, Paired
from benchmarks.evidence.tables import difference, interval, markdown, signed

WIDE = (0.1, *OFF, 10.0)


def percent(number: float) -> str:
    """A share."""
    return f"{100 * number:+.0f} %" if math.isfinite(number) else "broke off"


def shown(found: Interval | None) -> str:
    """A share with its interval, bold where that leaves out 0."""
    if found is None:
        return ""
    text = interval(found, percent)
    return f"**{text}**" if found.sign else text


def costs(found: Found) -> str:
    """What a wrong LR costs `linear` on each task."""
    factors = [factor for factor in WIDE if any(found.cost(task, factor) for task in found.shares)]
    rows = []
    for task in found.shares:
        right = found.evidence.cell(task, BASE)
        if right is not None:
            own = [difference(found.cost(task, factor)) for factor in factors]
            rows.append([task.task, f"{right.lr:g}", interval(right.interval), *own])
    heads = [f"cost of {FACTOR_NAMES[factor]} x LR, seeds on which it gained" for factor in factors]
    return markdown(["task", "LR tuned for linear", "held-out loss", *heads], rows)


def verdicts(found: Found) -> str:
    """A row per controller: on each task whether the goal was reached, and the verdict over all."""
    rows = []
    for name in found.names():
        cells = []
        for task in found.shares:
            goal = found.goal(task, name)
            if goal is None:
                cells.append("")
                continue
            shares = ", ".join(
                f"{percent(own.median)} at {FACTOR_NAMES[factor]}" for factor, own in goal.shares.items()
            )
            cells.append(f"{'**yes**' if goal.reached else 'no'}: {goal.right.verdict}; {shares}")
        mean = found.mean_share(name, [task for task in found.shares if found.goal(task, name) is not None])
        rows.append([name, *cells, "" if mean is None else percent(mean), found.verdict(name)])
    columns = ["controller", *(task.task for task in found.shares), "mean share", "verdict"]
    return markdown(columns, rows)


def summary(found: Found) -> str:
    """The verdicts in short, for documents: the difference at the right LR, and the shares at 1/3 and 3 times it."""
    rows = []
    for name in found.names():
        cells = [_short(found, task, name) for task in found.shares]
        rows.append([f"`{name}`", *cells, found.verdict(name)])
    return markdown(["controller", *(task.task for task in found.shares), "verdict"], rows)


def _short(found: Found, task: Share, name: str) -> str:
    pair = found.evidence.against(task, name, BASE)
    if pair is None:
        return ""
    right = _told(pair)
    shares = [found.recovered(task, name, factor) for factor in OFF]
    goal = found.goal(task, name)
    cells = [right]
    if goal is not None:
        cells.append(", ".join(percent(own.median) if own else "-" for own in shares))
    return "; ".join(cells)


def task(found: Found, share: Share) -> str:
    """Every controller on a task: at its LR against `linear`, and the shares recovered."""
    rows = []
    for name in (*dict.fromkeys((*share.schedules, *share.third)),):
        cell = found.evidence.cell(share, name)
        if cell is None:
            continue
        pair = None if name == BASE else found.evidence.against(share, name, BASE)
        shares = [shown(found.recovered(share, name, factor)) if name != BASE else "" for factor in WIDE]
        rows.append([name, f"{cell.lr:g}", interval(cell.interval), difference(pair), *shares])
    heads = [f"share at {FACTOR_NAMES[factor]} x LR" for factor in WIDE]
    return markdown(["controller", "LR", "held-out loss", "less linear's, seeds with less", *heads], rows)


def variants(found: Found, of: str, names: Iterable[str]) -> str:
    """Variants against what they vary, at the LR and at 1/3 and 3 times it on each task: the median difference, bold
    where it is told from 0; and how often better, tie and worse.
    """
    factors = (1.0, *OFF)
    tasks = [task for task in found.shares if any(found.evidence.cell(task, name) for name in names)]
    rows = []
    for name in names:
        pairs = [[found.evidence.against(task, name, of, factor) for factor in factors] for task in tasks]
        verdicts = [pair.verdict for own in pairs for pair in own if pair is not None]
        counts = "-".join(str(verdicts.count(word)) for word in ("better", "tie", "worse"))
        rows.append([name, *(", ".join(map(_told, own)) for own in pairs), counts])
    return markdown([f"less {of}", *(task.task for task in tasks), "better-tie-worse"], rows)


def _told(pair: Paired | None) -> str:
    if pair is None:
        return "-"
    text = signed(pair.difference.median)
    return f"**{text}**" if pair.verdict in ("better", "worse") else text


def first(found: Found) -> str:
    """Better, tie and worse of the schedules that may take the place of `linear`."""
    rows, columns = [], ["schedule"]
    for name in SCHEDULES:
        own = found.against_linear(name)
        columns = ["better-tie-worse than linear", *own]
        rows.append([name])
        for verdicts in own.values():
            rows[-1].append("-".join(str(verdicts.count(word)) for word in ("better", "tie", "worse")))
    return markdown(columns, rows)


def disturbed(found: Found, share: Share) -> str:
    """Controllers under each disturbance against `linear` there, and with SkipSpikes against themselves without."""
    rows = []
    for scenario in DISTURBED:
        for name in [name for where, name in share.disturbed if where == scenario]:
            cell = found.evidence.cell(share, name, scenario=scenario)
            if cell is None:
                continue
            cells = []
            for other in (BASE, name.removesuffix(" skip-spikes")):
                pair = found.evidence.against(share, name, other, scenario=scenario) if other != name else None
                cells.append(difference(pair))
            rows.append([scenario, name, interval(cell.interval), *cells])
    heads = ["less linear's, seeds with less", "less its own without SkipSpikes"]
    return markdown(["disturbance", "controller", "held-out loss", *heads], rows)
