"""The report's pictures: losses at the best LR, over the LR, in scenarios, of variants, and what runs look like."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.comparison import FACTOR_NAMES, FACTORS, Evidence
from benchmarks.evidence.presets import FEW, SCENARIOS, Share
from benchmarks.evidence.schedules import ABLATED, LOSS_DRIVEN, ablations_of
from benchmarks.evidence.statistics import Paired

_OURS, _OTHERS = "#1f77b4", "#777777"
_LINES = ("linear", "cosine", "constant", "greedy-raw", "greedy-smooth", "greedy-constant", "greedy-linear", "plateau")


def available() -> bool:
    """Whether there is matplotlib, which then draws to files; if not, a line says so."""
    try:
        import matplotlib
    except ImportError as error:
        print(f"no pictures: {error}; pip install matplotlib, then write the report again")
        return False
    matplotlib.use("Agg")
    return True


def draw(evidence: Evidence, folder: Path) -> list[Path]:
    """All pictures for which there are runs. Without matplotlib: none, and a line that says so."""
    if not available():
        return []
    pictures: dict[str, Callable[[Evidence, Path], bool]] = {
        "tuned": tuned,
        "runs": runs,
        "wrong_lr": wrong_lr,
        "scenarios": scenarios,
        "ablations": ablations,
    }
    paths = {folder / f"{name}.png": picture for name, picture in pictures.items()}
    return [path for path, picture in paths.items() if picture(evidence, path)]


def tuned(evidence: Evidence, path: Path) -> bool:
    """A panel per task: the median at the best LR of each schedule, with its interval."""
    shares = evidence.tasks()
    figure, axes = panels(len(shares), 4.6, 4.4)
    for axis, share in zip(axes, shares, strict=False):
        names = evidence.compared(share, share.schedules)[::-1]
        found = [cell.interval for name in names if (cell := evidence.cell(share, name)) is not None]
        for y, (name, own) in enumerate(zip(names, found, strict=True)):
            color = _OURS if name in LOSS_DRIVEN else _OTHERS
            axis.plot([own.low, own.high], [y, y], color=color, linewidth=1.2)
            axis.plot([own.median], [y], "o", color=color, markersize=4)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(share.task, fontsize=9)
        axis.grid(axis="x", linewidth=0.3)
    return save(figure, path, "held-out loss at the end, nats; blue: the loss decides", bool(shares))


def wrong_lr(evidence: Evidence, path: Path) -> bool:
    """A panel per task: median loss over the LR as a multiple of the best one."""
    shares = [share for share in evidence.tasks() if share.third and evidence.cell(share, share.third[0], 3.0)]
    figure, axes = panels(len(shares), 4.6, 3.6)
    for axis, share in zip(axes, shares, strict=False):
        for index, name in enumerate(name for name in _LINES if name in share.third):
            cells = {factor: evidence.cell(share, name, factor) for factor in FACTORS}
            points = [(factor, cell.interval.median) for factor, cell in cells.items() if cell is not None]
            xs, ys = zip(*[point for point in points if math.isfinite(point[1])], strict=True)
            axis.plot(xs, ys, "-o" if name in LOSS_DRIVEN else "--s", color=f"C{index}", markersize=3, label=name)
        axis.set_xscale("log")
        axis.set_xticks(FACTORS, [FACTOR_NAMES[factor] for factor in FACTORS], minor=False)
        logarithmic(axis)
        axis.set_title(share.task, fontsize=9)
        axis.legend(fontsize=6)
        axis.grid(linewidth=0.3, which="both")
    return save(figure, path, "multiple of the best LR; held-out loss at the end, nats", bool(shares))


def scenarios(evidence: Evidence, path: Path) -> bool:
    """A panel per task and scenario: paired differences to linear."""
    cases = [(share, name) for share in evidence.tasks() for name in SCENARIOS if evidence.disturbed(share, name)]
    figure, axes = panels(len(cases), 3.6, 2.6, columns=4)
    for axis, (share, name) in zip(axes, cases, strict=False):
        found = {
            schedule: pair
            for schedule in evidence.disturbed(share, name)
            if schedule != "linear" and (pair := evidence.against(share, schedule, "linear", 1.0, name)) is not None
        }
        _differences(axis, found, f"{share.task}, {name}")
    return save(
        figure, path, "held-out loss less that of linear on the same seeds, nats; blue: the loss decides", bool(cases)
    )


def ablations(evidence: Evidence, path: Path) -> bool:
    """A panel per task and base: paired differences of the variants to the defaults."""
    cases = []
    for share in evidence.tasks():
        for base in ABLATED:
            pairs = {n: evidence.against(share, n, f"greedy-{base}") for n in ablations_of(base)}
            found = {name.split()[1]: pair for name, pair in pairs.items() if pair is not None}
            cases += [(f"{share.task}, greedy-{base}", found)] if found else []
    figure, axes = panels(len(cases), 4.2, 3.6)
    for axis, (title, found) in zip(axes, cases, strict=False):
        _differences(axis, found, title)
    return save(figure, path, "held-out loss less that with the defaults on the same seeds, nats", bool(cases))


def runs(evidence: Evidence, path: Path) -> bool:
    """Per task the held-out loss and the LR over a run, medians over seeds, of the usual schedules at their best LR."""
    shares = [share for share in evidence.tasks() if _curves(evidence, share, "linear", "curve")]
    figure, axes = panels(2 * len(shares), 4.2, 3.2, columns=2)
    for row, share in enumerate(shares):
        for index, name in enumerate(name for name in FEW if name in share.schedules):
            style = "-" if name in LOSS_DRIVEN else "--"
            for axis, key in zip(axes[2 * row : 2 * row + 2], ("curve", "lrs"), strict=True):
                if points := _curves(evidence, share, name, key):
                    axis.plot(*zip(*points, strict=True), style, color=f"C{index}", linewidth=1.1, label=name)
        for axis, what in zip(axes[2 * row : 2 * row + 2], ("held-out loss, nats", "LR"), strict=True):
            logarithmic(axis)
            axis.set_title(f"{share.task}: {what}", fontsize=9)
            axis.grid(linewidth=0.3, which="both")
        axes[2 * row].legend(fontsize=6)
    return save(figure, path, "steps", bool(shares))


def _curves(evidence: Evidence, share: Share, name: str, key: str) -> list[tuple[int, float]]:
    """Medians over seeds by step, without the first evaluation and what a logarithmic axis cannot show."""
    found: Any = [record[key] for _, record in evidence.records(share, name) if record["final"] is not None]
    points = [(column[0][0], statistics.median(value for _, value in column)) for column in zip(*found, strict=True)]
    return [(step, value) for step, value in points if step and value > 0]


def _differences(axis: Any, found: dict[str, Paired], title: str) -> None:
    for y, (name, pair) in enumerate(reversed(found.items())):
        color, own = _OURS if name in LOSS_DRIVEN or "=" in name else _OTHERS, pair.difference
        axis.plot([own.low, own.high], [y, y], color=color, linewidth=1.2)
        axis.plot([own.median], [y], "o", color=color, markersize=4)
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(found)), [*found][::-1], fontsize=6)
    axis.tick_params(axis="x", labelsize=6)
    axis.set_title(title, fontsize=8)
    axis.grid(axis="x", linewidth=0.3)


def logarithmic(axis: Any) -> None:
    """With plain numbers, also where the axis spans less than a factor of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0)))
    for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.tick_params(axis="y", which="both", labelsize=6)


def panels(count: int, width: float, height: float, columns: int = 3) -> tuple[Any, Sequence[Any]]:
    """A figure of so many panels, each so large in inches, and their axes row by row."""
    from matplotlib import pyplot

    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, figsize=(width * columns, height * rows + 0.5))
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat)


def save(figure: Any, path: Path, label: str, anything: bool) -> bool:
    """Write a figure with a label below, if there is anything in it; returns whether."""
    from matplotlib import pyplot

    if anything:
        figure.supxlabel(label, fontsize=9)
        figure.tight_layout()
        figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
    return anything
