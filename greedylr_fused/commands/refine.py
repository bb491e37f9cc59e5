"""`python -m greedylr_fused refine`: a schedule made of the gradient norms that a finished run recorded.

Equal to `Refined.from_norms` (schedules/refined.py), with the norms read from a file and the result drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from greedylr_fused.commands import fail, gradient_norms
from greedylr_fused.commands.plot import load_pyplot
from greedylr_fused.schedules import Refined, refinement

#: A peak within this last share of the run is remarked upon.
_LATE = 0.1


def main(argv: Sequence[str] | None = None) -> None:
    """Read, refine, write, and say what came out; an error ends in one message and exit status 2."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        plot = load_pyplot() if given.plot else None
        run, recorded = gradient_norms.read(Path(given.source), given.run)
        norms, name = _column(recorded, given)
        schedule = Refined.from_norms(
            norms,
            optimizer=given.optimizer,
            total_steps=given.total_steps,
            tau=given.tau,
            source=f"{name} norms of {run} in {given.source}",
        )
        schedule.save(given.out)
        print(_summary(given, norms, name, schedule))
        if plot:
            _draw(plot, given, norms, name, schedule)
    except (OSError, TypeError, ValueError) as error:
        fail(parser, error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m greedylr_fused refine",
        description="Make a schedule of the gradient norms that a finished run recorded (arXiv 2310.07831). Load it "
        "with Refined.load(path); its values are ratios of the peak LR, which is tuned anew.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help='run.jsonl with the keys "grad_norm_l1" (for Adam) or "grad_norm" (L2, for SGD), each step once, as '
        "Recorder(opt, path, grad_norms=True) writes it",
    )
    parser.add_argument("-o", "--out", default="refined.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--plot", metavar="FILE.png", help="draw norms and schedule (needs matplotlib)")
    parser.add_argument(
        "--total-steps", type=int, metavar="N", help="length of the new run; default: that of the recorded one"
    )
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="default: %(default)s")
    parser.add_argument(
        "--tau",
        type=float,
        default=refinement.DEFAULT_TAU,
        help="width of the median filter as a share of all steps; default: %(default)s",
    )
    parser.add_argument("--run", metavar="NAME", help="which run, if SOURCE has several")
    parser.add_argument(
        "--l2", action="store_true", help="take L2 norms for Adam, where no L1 norms were recorded; not the paper's"
    )
    return parser


def _column(norms: Tensor, given: argparse.Namespace) -> tuple[Tensor, str]:
    """Return the norms of the kind that the optimizer needs, and the kind's name.

    Raises:
        ValueError: those norms were not recorded.
    """
    column, name, _ = refinement.OPTIMIZERS["sgd" if given.l2 else given.optimizer]
    found = norms[:, column]
    if not bool(found.isfinite().any()):
        other = bool(norms.isfinite().any())
        remedy = 'record them with Recorder(opt, path, grad_norms=True), or write "grad_norm_l1" with each step'
        if other and not given.l2 and given.optimizer == "adam":
            remedy += "; or take the L2 norms that are there with --l2, which is not what the paper does for Adam"
        raise ValueError(
            f"{given.source}: expected {name} norms, which {given.optimizer} needs, got {len(found)} steps without; "
            f"{remedy}"
        )
    return found, name


def _summary(given: argparse.Namespace, norms: Tensor, name: str, schedule: Refined) -> str:
    finite, values = int(norms.isfinite().sum()), schedule.values
    peak = values.index(max(values))
    dropped = f", {len(norms) - finite} without a finite norm dropped" if finite < len(norms) else ""
    lines = [
        f"{given.source}: {name} norms of {len(norms)} steps{dropped}; median over "
        f"{refinement.filter_width(finite, given.tau)} steps",
        f"{given.out}: {len(values)} steps; step 0 at {values[0]:.3g} of the peak LR, the peak at step {peak} "
        f"({peak / len(values):.0%}), half of it from step {_last_above(values, 0.5) + 1} on, the last step at "
        f"{values[-1]:.3g}",
    ]
    if peak >= (1 - _LATE) * len(values):
        lines.append("the norms collapse at the end, and the schedule has its peak there: Linear is the safer choice")
    return "\n".join(lines)


def _last_above(values: Sequence[float], level: float) -> int:
    return max(step for step, value in enumerate(values) if value > level)


def _draw(plot: Any, given: argparse.Namespace, norms: Tensor, name: str, schedule: Refined) -> None:
    """Draw the norms as recorded and filtered, and the schedule beside linear decay."""
    figure, (left, right) = plot.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    finite = norms.isfinite()
    steps = finite.nonzero().flatten().tolist()
    left.semilogy(steps, norms[finite].tolist(), linewidth=0.5, alpha=0.5, label="recorded")
    left.semilogy(steps, refinement.smoothed(norms, given.tau).tolist(), label=f"median, tau {given.tau:g}")
    left.set(xlabel="step", ylabel=f"{name} norm of the gradient", title=Path(given.source).name)
    last = max(1, len(schedule.values) - 1)
    right.plot(schedule.values, label=f"refined for {given.optimizer}")
    right.plot([0, last], [1, 0], linestyle="--", linewidth=1, label="linear decay")
    right.set(xlabel="step", ylabel="share of the peak LR", title=Path(given.out).name)
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(given.plot, dpi=120)
    plot.close(figure)
