"""`python -m greedylr_fused plot`: loss and learning rate of a recorded run, with the loss's decisions marked."""

from __future__ import annotations

import argparse
import importlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.commands import fail
from greedylr_fused.telemetry import BACK, CUT, EVENTS, FREEZE, RAISE, RESET, SKIP, TRY, Run, recorded_run

#: Form and colour of the marks.
_MARKS = {RAISE: ("^", "#2ca02c"), CUT: ("v", "#d62728"), RESET: ("D", "#9467bd"), SKIP: ("x", "#444444")}
_MARKS |= {TRY: (">", "#1f77b4"), BACK: ("<", "#ff7f0e"), FREEZE: ("s", "#17becf")}
#: Told of every run; the other events only where there were some.
_ALWAYS = (RAISE, CUT, RESET)
_PLURALS = {TRY: "tries", BACK: "back"}
#: Lines have at most four points for each of so many parts of a run: two for each pixel.
_PARTS = 1000
#: Learning rates of more groups than this are not told apart by colour.
_GROUPS = 6
_NAMES = {SKIP: "skipped"}
_LOST = "no lines"


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, and say what is in the picture; an error ends in one message and exit status 2."""
    parser = _parser()
    given = parser.parse_args(argv)
    out = given.out or str(Path(given.source).with_suffix(".png"))
    try:
        figures = load_pyplot()
        runs = _chosen(given)
        _draw(figures, runs, Path(given.source).name, out, log_lr=given.log_lr)
    except (OSError, ValueError) as error:
        fail(parser, error)
    for name, run in runs.items():
        print(_summary(name, run))
    print(out)


def load_pyplot() -> Any:
    """Return `matplotlib.pyplot`, told to draw into files.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ValueError(
            f"expected matplotlib, which draws the picture, got none ({error}); run: pip install matplotlib"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m greedylr_fused plot",
        description="Draw loss and learning rate of a run, with raises, cuts, resets and skipped steps marked.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="run.jsonl, as greedylr_fused.telemetry or the main job writes it"
    )
    parser.add_argument("-o", "--out", metavar="FILE.png", help="default: SOURCE with the ending .png")
    parser.add_argument("--run", metavar="NAME", help="one run of several; default: all, a colour each")
    parser.add_argument("--from", dest="first", type=int, metavar="N", help="first step")
    parser.add_argument("--to", dest="last", type=int, metavar="N", help="last step")
    parser.add_argument("--log-lr", action="store_true", help="logarithmic axis for the learning rate")
    return parser


def _chosen(given: argparse.Namespace) -> dict[str, Run]:
    """Return the runs to draw, cut to the steps that were asked for.

    Raises:
        OSError, ValueError: no file, run or step is there.
    """
    runs = recorded_run.read(given.source)
    if given.run is not None:
        if given.run not in runs:
            raise ValueError(
                f"--run: expected one of {', '.join(runs)} in {given.source}, got {given.run!r}; choose one of them"
            )
        runs = {given.run: runs[given.run]}
    found = {name: run.between(given.first, given.last) for name, run in runs.items()}
    found = {name: run for name, run in found.items() if run.steps}
    if not found:
        begin, end = min(run.steps[0] for run in runs.values()), max(run.steps[-1] for run in runs.values())
        raise ValueError(
            f"{given.source}: expected --from and --to that enclose some of {begin} to {end}, got no step from "
            f"{'the first' if given.first is None else given.first} to "
            f"{'the last' if given.last is None else given.last}; choose others"
        )
    return found


def _summary(name: str, run: Run) -> str:
    counts = Counter(run.events)
    parts = [
        f"{counts[event]} {event if counts[event] == 1 else _PLURALS.get(event, event + 's')}"
        for event in EVENTS
        if event in _ALWAYS or counts[event]
    ]
    if not run.tells_decisions:
        parts = ["what was decided is not in the file"]
    parts += [f"{counts[SKIP]} skipped"] + ([f"{_lost(run)} without a line"] if run.lost else [])
    return f"{name}: steps {run.steps[0]} to {run.steps[-1]}; {', '.join(parts)}"


def _lost(run: Run) -> int:
    return sum(run.lost.values())


def _draw(figures: Any, runs: dict[str, Run], title: str, out: str, *, log_lr: bool) -> None:
    figure, (upper, lower) = figures.subplots(2, 1, figsize=(10, 6.5), sharex=True, layout="constrained")
    single = len(runs) == 1
    for index, (name, run) in enumerate(runs.items()):
        color = f"C{index % 10}"
        _loss(upper, run, color, None if single else name)
        _rates(lower, run, color, single)
        _marks(upper, lower, run, None if single else color)
    upper.set(ylabel="loss", title=title)
    lower.set(xlabel="step", ylabel="learning rate of the next step", yscale="log" if log_lr else "linear")
    if not log_lr:
        lower.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.margins(x=0.01)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one of each name
        if handles:
            axes.legend(handles.values(), handles.keys(), fontsize="small", loc="best", ncols=2)
    figure.savefig(out, dpi=130)
    figures.close(figure)


def _loss(axes: Any, run: Run, color: str, name: str | None) -> None:
    """Draw the losses; if smoothed ones differ, draw those on top, and the losses faintly."""
    steps, loss, smoothed = _column(run.steps), _column(run.loss), _column(run.smoothed_loss)
    if not bool((smoothed.isfinite() & (smoothed != loss)).any()):
        _line(axes, steps, loss, color=color, linewidth=0.9, label=name or "loss")
        return
    _line(axes, steps, loss, color=color, linewidth=0.7, alpha=0.35, label=None if name else "loss")
    _line(axes, *averaged(steps, smoothed), color=color, linewidth=1.5, label=name or "smoothed")


def _rates(axes: Any, run: Run, color: str, single: bool) -> None:
    """Draw a line for every parameter group whose LRs are not those of one before it."""
    steps = _column(run.steps)
    groups = max(map(len, run.lrs))
    columns = list(
        dict.fromkeys(tuple(lrs[g] if g < len(lrs) else torch.nan for lrs in run.lrs) for g in range(groups))
    )
    for index, column in enumerate(columns):
        several = single and 1 < len(columns) <= _GROUPS
        shade = {"color": f"C{index}", "label": f"LR {index}"} if several else {"color": color}
        values = torch.tensor(column, dtype=torch.float64, device="cpu")
        _line(axes, steps, values, linewidth=1.2, drawstyle="steps-post", zorder=1, **shade)


def _marks(upper: Any, lower: Any, run: Run, color: str | None) -> None:
    """Draw decisions at the LR that they led to, skipped steps at the foot of the losses, gaps as grey bands."""
    counts = Counter(run.events)
    for kind, (form, own) in _MARKS.items():
        if not counts[kind]:
            continue
        at = [index for index, event in enumerate(run.events) if event == kind]
        steps = [run.steps[index] for index in at]
        label = _NAMES.get(kind, kind)
        label = label if color else f"{label} ({len(at)})"
        look: dict[str, Any] = {"marker": form, "color": color or own, "linestyle": "none", "label": label}
        look |= {"markersize": _size(len(at)), "zorder": 3 if kind == RESET else 2}
        if kind == SKIP:
            upper.plot(steps, [0.02] * len(at), transform=upper.get_xaxis_transform(), **look)
        else:
            lower.plot(steps, [run.lrs[index][0] for index in at], markeredgewidth=0, **look)
    for index, (last, count) in enumerate(run.lost.items()):
        for axes in (upper, lower):
            name = f"{_LOST} ({_lost(run)})" if index == 0 and axes is upper else None
            axes.axvspan(last - count + 0.5, last + 0.5, color="0.85", linewidth=0, zorder=0, label=name)


def _size(count: int) -> float:
    """Return the size of a mark in points, smaller where there are many."""
    return 7.0 if count <= 100 else max(2.0, 7.0 * (100 / count) ** 0.3)


def _column(values: array[Any]) -> Tensor:
    """Return the values as a float64 tensor [steps]."""
    return torch.frombuffer(values, dtype=torch.int64 if values.typecode == "q" else torch.float64).double()


def _line(axes: Any, steps: Tensor, values: Tensor, **look: Any) -> None:
    finite = values.isfinite()
    steps, values = steps[finite], values[finite]
    kept = thinned(values)
    axes.plot(steps[kept].tolist(), values[kept].tolist(), **look)


def averaged(steps: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of equal parts of a smooth line, whose extremes would hide all that is behind them."""
    finite = values.isfinite()
    steps, values = steps[finite], values[finite]
    size = -(-len(values) // _PARTS)
    if size <= 4:
        return steps, values
    parts = [
        torch.cat((column[: len(column) // size * size].view(-1, size).mean(1), column[-1:]))
        for column in (steps, values)
    ]
    return parts[0], parts[1]


def thinned(values: Tensor) -> Tensor:
    """Return the positions that draw the same line: the first, least, largest and last of each of equal parts."""
    size = -(-len(values) // _PARTS)
    if size <= 4:
        return torch.arange(len(values), device="cpu")
    parts = values[: len(values) // size * size].view(-1, size)
    begins = torch.arange(len(parts), device="cpu") * size
    rest = torch.arange(parts.numel(), len(values), device="cpu")
    ends, least, largest = begins + size - 1, begins + parts.argmin(1), begins + parts.argmax(1)
    return torch.cat((torch.stack((begins, least, largest, ends), dim=1).sort(dim=1).values.flatten(), rest))
