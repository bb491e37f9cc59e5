"""What Muon for the blocks and FusedAdamW for the rest, under one GreedyLR, is worth beside FusedAdamW for all.

Each run is the training example's, in a process and on a thread of its own. The starting LR of each optimizer is tuned
over a grid of its own, on a seed that is not compared; then both train from the same seeds, on the same batches.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import options, report
from benchmarks.harness import OnRound
from benchmarks.options import Asked
from benchmarks.report import Record, Report

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "pretrain.py"
OPTIMIZERS = ("fused", "muon+fused")
TUNED_ON = 100
MINUTES = 60  # for one run, after which it has failed


def train(optimizer: str, lr: float, seed: int, asked: Asked) -> dict[str, Any]:
    """The summary of one run of the example."""
    steps, size = asked.config["steps"], asked.config["size"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLE), "--optimizer", optimizer, "--size", size, "--out", f"{folder}/run"]
        command += ["--lr", str(lr), "--seed", str(seed), "--steps", str(steps), "--device", asked.device.type]
        command += ["--save-every", str(steps), "--eval-every", str(steps), "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
        if done.returncode not in (0, 1):  # 1: it diverged, which is a result
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        found: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return found["runs"][optimizer]  # type: ignore[no-any-return]


def measure(optimizer: str, lr: float | None, seed: int, asked: Asked, found: Report, _: OnRound | None = None) -> None:
    """One run, and its record; without an LR at the best of those that were tried with this optimizer."""
    row = train(optimizer, tuned(found, optimizer) if lr is None else lr, seed, asked)
    found.add(
        optimizer=optimizer,
        lr=tuned(found, optimizer) if lr is None else lr,
        seed=seed,
        tuning=lr is not None,
        held_out_bits_per_byte=row["held_out_bits_per_byte"],
        train_loss_bits_per_byte=row["train_loss_bits_per_byte"],
        optimizer_ms=row["optimizer_ms"],
        step_ms=row["step_ms"],
        host_reads_per_step=row["host_reads_per_step"],
    )


def tuned(found: Report, optimizer: str) -> float:
    """The LR with the least held-out loss on the seed for that."""
    tried = [record for record in found.records if record["tuning"] and record["optimizer"] == optimizer]
    return float(min(tried, key=_held_out)["lr"])


def _held_out(record: Record) -> float:
    loss = record["held_out_bits_per_byte"]
    return math.inf if loss is None else float(loss)


def run(grids: Sequence[Sequence[float]], seeds: int, asked: Asked) -> Report:
    """The grid of each optimizer, and then the seeds of both in turn."""
    found = Report("two_optimizers", asked.device, asked.config)
    plan = [(optimizer, lr, TUNED_ON) for optimizer, lrs in zip(OPTIMIZERS, grids, strict=True) for lr in lrs]
    plan += [(optimizer, None, seed) for seed in range(seeds) for optimizer in OPTIMIZERS]
    cases = {
        f"{optimizer}, seed {seed}, " + ("the best lr" if lr is None else f"lr {lr:g}"): functools.partial(
            measure, optimizer, lr, seed, asked, found
        )
        for optimizer, lr, seed in plan
    }
    return options.measure(found, cases, asked)


def print_report(found: Report) -> None:
    """One row per run, and the difference of those that are paired."""
    rows = [
        [
            record["optimizer"],
            f"{record['lr']:g}",
            f"{record['seed']}{', for the lr' if record['tuning'] else ''}",
            report.number(record["held_out_bits_per_byte"], 4),
            report.number(record["train_loss_bits_per_byte"], 4),
            report.number(record["optimizer_ms"]["median"]),
            report.number(record["step_ms"]["median"]),
            report.number(record["host_reads_per_step"]),
        ]
        for record in found.records
    ]
    columns = ["optimizer", "lr", "seed", "held out", "training", "optimizer ms", "step ms", "reads/step"]
    report.print_table("bits per byte of the training example", columns, rows)
    compared = [[r for r in found.records if not r["tuning"] and r["optimizer"] == name] for name in OPTIMIZERS]
    gaps = [_held_out(other) - _held_out(own) for own, other in zip(*compared, strict=True)]
    if gaps:
        shown = ", ".join(f"{gap:+.4f}" for gap in gaps)
        print(f"held out, {OPTIMIZERS[1]} minus {OPTIMIZERS[0]}, by seed: {shown}; mean {statistics.mean(gaps):+.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser("two_optimizers", "two_optimizers.json", str(__doc__))
    parser.add_argument("--size", default="tiny", help="of the example (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="that are compared (default: %(default)s)")
    for option, default in (("--lrs", "2.5e-4,5e-4,1e-3"), ("--muon-lrs", "1e-3,2e-3,4e-3,8e-3")):
        parser.add_argument(
            option, default=default, metavar="A,B", help="grid, with a best one within (default: %(default)s)"
        )
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    grids = [[float(lr) for lr in options.names(given)] for given in (arguments.lrs, arguments.muon_lrs)]
    options.finish(run(grids, arguments.seeds, asked), asked, print_report)


if __name__ == "__main__":
    main()
