"""The command line: options as given, each with the values it may have."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from config import SIZES
from engine import ENGINES
from errors import UsageError
from lr_schedules import FILE, NAMES


@dataclass(frozen=True)
class Request:
    """A parsed command line: options as given, nothing filled in. The engine is none of them: a run may go on with
    another.
    """

    given: dict[str, Any]
    engine: str | None
    out: Path | None
    resume: Path | None
    overwrite: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def parse(arguments: Sequence[str] | None) -> Request:
    """Read the command line.

    Raises:
        UsageError: an unknown option or a value that is not allowed.
    """
    parser = _Parser(
        prog="pretrain.py",
        description="Pretrain a byte-level GPT on real text with FusedAdamW and GreedyLR, which moves the learning "
        "rate between 0.1 and 4 times --lr, or with another --schedule.",
        epilog="Ctrl-C (or SIGTERM) finishes the step, saves and exits with 130 (143); --resume goes on as if nothing "
        "had happened, to the bit. A run that diverges (a held-out loss, or 20 steps in a row, not finite) stops with "
        "exit code 1 and leaves the checkpoint before; so does one that cannot write it, as on a full disk. A wrong "
        "option, path or checkpoint: one line, exit code 2, nothing written. Several processes: torchrun "
        "--nproc-per-node 2 examples/pretrain.py --fsdp (or --ddp); with --max-restarts 3 torchrun starts them again "
        "when one dies, and they go on from the last checkpoint (on one node; on several use --resume). torchrun's own "
        "exit code is 1 after a signal, and it starts a job again whatever ended it.",
        argument_default=argparse.SUPPRESS,
    )
    sizes = "; ".join(f"{name}: batch {s.batch}, lr {s.lr:g}, steps {s.steps}" for name, s in SIZES.items())
    add = parser.add_argument
    add("--size", choices=list(SIZES), help="model size (default: tiny on a CPU, gpt2 on a GPU; micro is for tests)")
    add(
        "--optimizer",
        choices=["fused", "torch", "muon+fused"],
        help="fused: FusedAdamW; torch: AdamW, clipping, a schedule on the host; muon+fused: Muon for the matrices of "
        "the blocks, FusedAdamW for the rest, one schedule over both",
    )
    add("--compare", action="store_true", help="run both optimizers from one seed and show the differences")
    engines = parser.add_mutually_exclusive_group()
    for name, meaning in ENGINES.items():
        engines.add_argument(f"--{name}", dest="engine", action="store_const", const=name, help=f"torchrun: {meaning}")
    add("--data", metavar="PATH", help="a text file or a folder (default: the Python standard library's sources)")
    add("--steps", type=_count, help=f"optimizer steps (defaults: {sizes})")
    add("--batch", type=_up_to(2**16), help="windows per micro-batch, of all ranks (default: by size)")
    add("--accumulate", type=_up_to(2**16), help="micro-batches per step (default: 1)")
    add(
        "--lr",
        type=_positive,
        help="starting or peak learning rate; GreedyLR's bounds are 0.1 and 4 times that, those of autolrs 0.1 and 10 "
        "times (default: by size)",
    )
    add("--weight-decay", type=_not_negative, help="of matrices (default: 0.1)")
    schedule_options(parser)
    add("--seed", type=_seed, help="of weights and batches (default: 0)")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    add("--threads", type=_up_to(os.cpu_count() or 1), help="CPU threads (default: as many as cores may be used)")
    add("--save-every", type=_count, help="steps between checkpoints (default: 100)")
    add("--eval-every", type=_count, help="steps between held-out losses (default: 100)")
    add("--log-every", type=_count, help="steps between lines where there is no terminal (default: 20)")
    add("--out", type=Path, help="output folder (default: runs/SIZE-OPTIMIZER or runs/SIZE-compare)")
    add(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR; --steps may be raised, and a schedule "
        "of a fixed length is then one of that many steps",
    )
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    given = vars(parser.parse_args(arguments))
    out, resume = given.pop("out", None), given.pop("resume", None)
    overwrite, engine = given.pop("overwrite", False), given.pop("engine", None)
    if resume is not None and (out is not None or overwrite):
        raise UsageError("--resume writes where it reads; leave out --out and --overwrite")
    if {"compare", "optimizer"} <= given.keys():
        raise UsageError("--compare runs both optimizers; leave out --optimizer, or --compare")
    return Request(given, engine, out, resume, overwrite)


def schedule_options(parser: argparse.ArgumentParser) -> None:
    """What decides the learning rate."""
    add = parser.add_argument_group("learning-rate schedule").add_argument
    add(
        "--schedule",
        type=_schedule,
        metavar="NAME",
        help=f"{', '.join(NAMES)}, or {FILE} (default: greedy). With + the loss moves what the curve "
        "multiplies; plateau is ReduceOnPlateau; climb and adalrs search the level of a linear curve on the device; "
        "autolrs finds the LR by trials on the host, which are among --steps",
    )
    add(
        "--trial-steps",
        type=_at_least(4),
        help="autolrs: steps of each of the 10 trials for the first stage, of 10 times as many steps; both double from "
        "stage to stage up to 8 times (default: a twentieth of --steps, which is one stage, at most 100)",
    )
    add("--warmup-steps", type=_not_negative_count, help="steps of a linear warm-up of the LR from 0 (default: 0)")
    add("--decay-steps", type=_count, help="wsd: steps of the decay at the end (default: a fifth of --steps)")
    add(
        "--min-lr-ratio", type=_ratio, help="where linear, cosine, wsd and plateau end, as a ratio of --lr (default: 0)"
    )
    add("--factor", type=float, help="greedy, plateau: a cut multiplies by it, a raise divides (default: 0.85)")
    add("--patience", type=int, help="greedy, plateau: a change comes after one observation more (default: 10)")
    add("--window", type=_up_to(10**6), help="losses in the mean that is shown, and compared (default: 50)")
    add("--record-norms", action="store_true", help="record the gradient norms of each step, for greedylr_fused refine")


def _schedule(text: str) -> str:
    if text not in NAMES and not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NAMES)}, or {FILE}, got {text}")
    return text


def _count(text: str) -> int:
    return _whole(text, 1, 2**53)


def _not_negative_count(text: str) -> int:
    return _whole(text, 0, 2**53)


def _at_least(least: int) -> Callable[[str], int]:
    return lambda text: _whole(text, least, 2**53)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)


def _up_to(most: int) -> Callable[[str], int]:
    return lambda text: _whole(text, 1, most)


def _whole(text: str, least: int, most: int) -> int:
    allowed = f"a whole number, {least} or more" if most >= 2**53 else f"a whole number from {least} to {most:,}"
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected {allowed}, got {text}")
    return value


def _positive(text: str) -> float:
    return _number(text, "a positive number", lambda value: 0 < value < math.inf)


def _not_negative(text: str) -> float:
    return _number(text, "0 or a positive number", lambda value: 0 <= value < math.inf)


def _ratio(text: str) -> float:
    return _number(text, "a ratio, 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, allowed: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {allowed}, got {text}")
    return value
