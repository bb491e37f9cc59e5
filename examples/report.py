"""What a run leaves behind: a picture of loss and LR over steps, and a table of results."""

from __future__ import annotations

import json
import math
import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from greedylr_fused import GreedyLR, __version__
from greedylr_fused.commands import doctor
from greedylr_fused.commands.plot import load_pyplot
from rich.console import Console
from rich.table import Table

import lr_schedules
import searched
from checkpoint import write_atomically
from config import Config
from record import Record, finite_or_none
from trainer import Trainer, host_reads_per_step

LABELS = {
    "fused": "FusedAdamW, {} on the device",
    "torch": "torch AdamW + clip, {} on the host",
    "muon+fused": "Muon and FusedAdamW, {} on the device",
}
SEARCH_LABEL = "FusedAdamW, {} on the host"
# The baseline is drawn dashed and thin over the wide line of ours, so that both are seen where they agree.
STYLES: dict[str, dict[str, Any]] = {
    "fused": dict(color="#1f77b4", linewidth=3.2, alpha=0.75),
    "torch": dict(color="#d62728", linewidth=1.2, linestyle=(0, (4, 2))),
    "muon+fused": dict(color="#2ca02c", linewidth=3.2, alpha=0.75),
}
SEARCH_LINES = ("steps of training", "steps of trials, undone")
Results = dict[str, dict[str, Any]]


def results(config: Config, trainer: Trainer, record: Record) -> dict[str, Any]:
    """The numbers of one trainer. Trains on to count host reads: call it when everything is saved.

    Times are of this process, so after a resume they are of the steps since.
    """
    row: dict[str, Any] = {
        "parameters": trainer.parameters,
        "tokens": trainer.steps * config.tokens_per_step,
        "skipped_steps": trainer.metrics.skipped,
        **trainer.spent,
        "train_loss_bits_per_byte": _last_loss(trainer, record),
        "held_out_bits_per_byte": finite_or_none(trainer.held_out_bits()),
    }
    if times := trainer.step_clock.milliseconds():
        row["step_ms"] = _spread(times)
        row["tokens_per_second"] = 1e3 * config.tokens_per_step / row["step_ms"]["median"]
    if times := trainer.optimizer_clock.milliseconds():
        row["optimizer_ms"] = _spread(times)
    row["host_reads_per_step"] = host_reads_per_step(trainer)
    return row


def _last_loss(trainer: Trainer, record: Record) -> float | None:
    """Smoothed training loss in bits per byte; None if the run ended in losses that are not finite."""
    smoothed = record.series(trainer.name, "smoothed_loss")[1]
    if not smoothed or (trainer.bad_steps and not trainer.skipped_last):
        return None
    return float(smoothed[-1]) / math.log(2)


def _spread(milliseconds: list[float]) -> dict[str, float]:
    """Median and percentiles: a pause of the machine, which falls on one of two runs, does not move them."""
    times = sorted(milliseconds)
    p20, p80 = times[len(times) // 5], times[len(times) * 4 // 5]
    return {"median": statistics.median(times), "p20": p20, "p80": p80, "steps": len(times)}


def write(folder: Path, config: Config, found: Results, record: Record, diverged: str | None, console: Console) -> None:
    """Leave what the run found in its folder, and show it."""
    summary = write_summary(folder, config, found, record, diverged)
    draw(folder / "curves.png", config, record, summary)
    print_summary(console, summary, folder)


def write_summary(folder: Path, config: Config, found: Results, record: Record, diverged: str | None) -> dict[str, Any]:
    """`summary.json`: the results of each run, why it was given up (None if it was not), and where two runs part."""
    summary: dict[str, Any] = {"schedule": lr_schedules.label(config), "runs": found, "diverged": diverged}
    summary["environment"] = environment()
    if len(found) == 2:
        if config.loss_driven:
            summary["first_loss_comparison_that_differs"] = record.first_difference("better")
        summary["first_lr_that_differs"] = record.first_difference("next_lr")
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "summary.json", lambda file: file.write(text.encode()))
    return summary


def environment() -> dict[str, str]:
    """What the numbers depend on: code, versions, machine."""
    detected = doctor.findings()
    kept = ("system", "CPU", "instruction set", "threads", "GPU", "torch", "triton")
    here = Path(__file__).parent
    commit = ""
    if shutil.which("git"):
        asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        commit = asked.stdout.strip()
    return {
        "greedylr_fused": __version__,
        "commit": commit or "unknown",
        "python": platform.python_version(),
        **{name: detected[name] for name in kept},
    }


def print_summary(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """The table, one column per run, and one line on where they part."""
    found: Results = summary["runs"]
    table = Table(title=f"result, {summary['schedule']}", title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    lines = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "tokens (bytes)": lambda r: f"{r['tokens']:,}",
        "training loss, smoothed (bits/byte)": lambda r: _loss(r["train_loss_bits_per_byte"]),
        "held-out loss (bits/byte)": lambda r: _loss(r["held_out_bits_per_byte"]),
        "steps of training": lambda r: f"{r['training_steps']:,}",
        "steps of trials, undone": lambda r: f"{r['search_steps']:,}",
        "steps skipped for non-finite gradients": lambda r: f"{r['skipped_steps']:,}",
        "whole step: median (ms)": lambda r: f"{r['step_ms']['median']:.1f}",
        "  20th to 80th percentile (ms) ": lambda r: f"{r['step_ms']['p20']:.1f} - {r['step_ms']['p80']:.1f}",
        "tokens per second, at the median": lambda r: f"{r['tokens_per_second']:,.0f}",
        "optimizer per step: median (ms)": lambda r: f"{r['optimizer_ms']['median']:.3f}",
        "  20th to 80th percentile (ms)": lambda r: f"{r['optimizer_ms']['p20']:.3f} - {r['optimizer_ms']['p80']:.3f}",
        "host reads per step": lambda r: f"{r['host_reads_per_step']:g}",
    }
    if not any("search_steps" in row for row in found.values()):
        lines = {label: shown for label, shown in lines.items() if label not in SEARCH_LINES}
    for label, shown in lines.items():
        table.add_row(label, *(_or_dash(shown, row) for row in found.values()))
    console.print(table)
    if len(found) == 2 and summary["diverged"] is None:
        console.print(parting(summary), highlight=False, soft_wrap=True)
    console.print(f"written to {folder}/: run.jsonl, curves.png, summary.json", highlight=False, soft_wrap=True)


def parting(summary: dict[str, Any]) -> str:
    """Where the two runs part, in words."""
    lr = summary["first_lr_that_differs"]
    if "first_loss_comparison_that_differs" not in summary:
        return "the LR traces are equal, bit for bit" if lr is None else f"the LR traces part at step {lr}"
    comparison = summary["first_loss_comparison_that_differs"]
    if comparison is None and lr is None:
        return "every loss comparison fell the same way in both runs: the LR traces are equal, bit for bit"
    parts = [f"rounding made the first loss comparison fall the other way at step {comparison}"]
    parts.append("the LR traces stay equal" if lr is None else f"the LR traces part at step {lr}")
    return "; ".join(parts)


def draw(path: Path, config: Config, record: Record, summary: dict[str, Any]) -> None:
    """Loss and LR over steps, both runs on each other; for two runs also how far apart their losses are."""
    pyplot = load_pyplot()  # not before: half a second of each start
    runs: Results = summary["runs"]
    compare = len(runs) == 2
    heights = [3.0, 1.2, 1.8] if compare else [3.0, 1.8]
    figure, axes = pyplot.subplots(
        len(heights), sharex=True, figsize=(9, 2 + 1.2 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    first = next(iter(runs.values()))
    figure.suptitle(
        f"{config.size} GPT, {first['parameters'] / 1e6:.1f}M parameters, {first['tokens'] / 1e6:.2f}M bytes of text, "
        f"{config.device.upper()} {config.dtype}"
    )
    for name in runs:
        label = SEARCH_LABEL if config.searches else LABELS[name]
        _draw_run(axes[0], axes[-1], record, name, label.format(summary["schedule"]))
    axes[0].set(ylabel="loss (bits per byte)")
    axes[-1].set(ylabel="learning rate", xlabel="optimizer step")
    _draw_bounds(axes[-1], config)
    if config.searches:
        searched.draw(axes, record)
    if compare:
        _draw_difference(axes[1], record)
        step = summary["first_lr_that_differs"]
        if step is not None:
            axes[-1].axvline(step, color="black", linewidth=0.8, label=f"LR traces part, step {step}")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    pyplot.close(figure)


def _draw_bounds(axis: Any, config: Config) -> None:
    """Those of GreedyLR. Where a curve leads to an LR of 0, the axis is no logarithm."""
    schedule, shares = config.lr_schedule, lr_schedules.curve(config)
    if min(shares) > 0.0:
        axis.set_yscale("log")
    for bound in ("min_lr", "max_lr") if isinstance(schedule, GreedyLR) else ():
        lrs = [getattr(schedule, bound) * shares[min(step, len(shares) - 1)] for step in range(config.steps + 1)]
        axis.plot(
            lrs, color="grey", linewidth=0.8, linestyle=":", label="min_lr, max_lr" if bound == "min_lr" else None
        )


def _draw_run(loss_axis: Any, lr_axis: Any, record: Record, name: str, label: str) -> None:
    style = STYLES[name]
    steps, losses = record.series(name, "loss")
    if name == "fused" or not record.series("fused", "loss")[0]:
        loss_axis.plot(
            steps, [loss / math.log(2) for loss in losses], color="grey", linewidth=0.5, label="single batch"
        )
    steps, smoothed = record.series(name, "smoothed_loss")
    loss_axis.plot(steps, [loss / math.log(2) for loss in smoothed], label=label, **style)
    steps, bits = record.series(name, "held_out_bits_per_byte")
    marker = "o" if name == "fused" else "x"
    loss_axis.plot(steps, bits, marker, color=style["color"], markersize=6, label=f"held out ({name})")
    steps, rates = record.series(name, "next_lr")
    lr_axis.plot(steps, rates, drawstyle="steps-post", label=label, **style)


def _draw_difference(axis: Any, record: Record) -> None:
    ours, theirs = (dict(zip(*record.series(run, "loss"), strict=True)) for run in ("fused", "torch"))
    steps = [step for step in ours if step in theirs]
    gaps = [abs(ours[step] - theirs[step]) / math.log(2) or math.nan for step in steps]  # zero has no logarithm
    axis.plot(steps, gaps, color="black", linewidth=0.7, label="difference of single-batch losses (none: equal bits)")
    axis.set(ylabel="bits per byte", yscale="log")


def _loss(bits: float | None) -> str:
    return "nan" if bits is None else f"{bits:.4f}"


def _or_dash(shown: Any, row: dict[str, Any]) -> str:
    try:
        return str(shown(row))
    except (KeyError, TypeError):  # too few steps for it
        return "-"
