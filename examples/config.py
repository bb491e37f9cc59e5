"""The run's options: sizes by name, the dataclass that a checkpoint keeps, the command line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from greedylr_fused import GreedyLR

from errors import UsageError
from model import Shape


@dataclass(frozen=True)
class Size:
    """A model's shape, and the options that suit it."""

    shape: Shape
    batch: int
    lr: float
    steps: int


# `gpt2` has GPT-2's depth, width and 124M parameters: those of its word embedding, which bytes do without, went to the
# MLP. `1b` is Llama 3.2 1B without its word embedding.
SIZES = {
    "micro": Size(Shape(layers=2, width=32, heads=2, kv_heads=1, hidden=64, context=32), 4, 3e-3, 20),
    "tiny": Size(Shape(layers=4, width=192, heads=6, kv_heads=6, hidden=512, context=128), 8, 1e-3, 400),
    "small": Size(Shape(layers=6, width=384, heads=6, kv_heads=6, hidden=1024, context=512), 16, 1e-3, 2000),
    "gpt2": Size(Shape(layers=12, width=768, heads=12, kv_heads=12, hidden=3456, context=1024), 32, 6e-4, 600),
    "1b": Size(Shape(layers=16, width=2048, heads=32, kv_heads=8, hidden=8192, context=2048), 8, 2e-4, 2000),
}
MAY_CHANGE = ("steps", "save_every", "eval_every", "log_every")  # on --resume


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Kept in the checkpoint, so that `--resume` needs no other option."""

    size: str
    steps: int
    batch: int
    lr: float
    optimizer: str = "fused"
    compare: bool = False
    data: str | None = None
    accumulate: int = 1
    weight_decay: float = 0.1
    factor: float = 0.85
    patience: int = 10
    window: int = 50
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 20

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return SIZES[self.size].shape

    @property
    def context(self) -> int:
        """Bytes per window."""
        return self.shape.context

    @property
    def tokens_per_step(self) -> int:
        """Bytes trained on in one optimizer step."""
        return self.batch * self.context * self.accumulate

    @property
    def optimizers(self) -> tuple[str, ...]:
        """What to train with."""
        return ("fused", "torch") if self.compare else (self.optimizer,)

    @property
    def schedule(self) -> GreedyLR:
        """Single losses are noisy, so means over a window are compared; the bounds are 0.1 and 4 times `lr`."""
        return GreedyLR(
            factor=self.factor,
            patience=self.patience,
            smooth=True,
            window_size=self.window,
            min_lr=0.1 * self.lr,
            max_lr=4 * self.lr,
        )


@dataclass(frozen=True)
class Request:
    """A parsed command line: options as given, nothing filled in."""

    given: dict[str, Any]
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
        "rate between 0.1 and 4 times --lr.",
        epilog="Ctrl-C (or SIGTERM) finishes the step, saves and exits with 130 (143); --resume goes on as if nothing "
        "had happened, to the bit. A run that diverges (a held-out loss, or 20 steps in a row, not finite) stops with "
        "exit code 1 and leaves the checkpoint before. A wrong option, path or checkpoint: one line, exit code 2, "
        "nothing written.",
        argument_default=argparse.SUPPRESS,
    )
    sizes = "; ".join(f"{name}: batch {s.batch}, lr {s.lr:g}, steps {s.steps}" for name, s in SIZES.items())
    add = parser.add_argument
    add("--size", choices=list(SIZES), help="model size (default: tiny on a CPU, gpt2 on a GPU; micro is for tests)")
    add("--optimizer", choices=["fused", "torch"], help="fused: FusedAdamW; torch: AdamW, clipping and a host GreedyLR")
    add("--compare", action="store_true", help="run both optimizers from one seed and show the differences")
    add("--data", metavar="PATH", help="a text file or a folder (default: the Python standard library's sources)")
    add("--steps", type=_count, help=f"optimizer steps (defaults: {sizes})")
    add("--batch", type=_up_to(2**16), help="windows per micro-batch (default: by size)")
    add("--accumulate", type=_up_to(2**16), help="micro-batches per step (default: 1)")
    add("--lr", type=_positive, help="starting learning rate; its bounds are 0.1 and 4 times that (default: by size)")
    add("--weight-decay", type=_not_negative, help="of matrices (default: 0.1)")
    add("--factor", type=float, help="GreedyLR: a cut multiplies by it, a raise divides (default: 0.85)")
    add("--patience", type=int, help="GreedyLR: a change comes after one more observation than that (default: 10)")
    add("--window", type=_up_to(10**6), help="GreedyLR: losses in the mean that is compared (default: 50)")
    add("--seed", type=_seed, help="of weights and batches (default: 0)")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    add("--threads", type=_up_to(os.cpu_count() or 1), help="CPU threads (default: as many as cores may be used)")
    add("--save-every", type=_count, help="steps between checkpoints (default: 100)")
    add("--eval-every", type=_count, help="steps between held-out losses (default: 100)")
    add("--log-every", type=_count, help="steps between lines where there is no terminal (default: 20)")
    add("--out", type=Path, help="output folder (default: runs/SIZE-OPTIMIZER or runs/SIZE-compare)")
    add("--resume", type=Path, metavar="DIR", help="go on with the run in DIR; --steps may be raised")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    given = vars(parser.parse_args(arguments))
    out, resume = given.pop("out", None), given.pop("resume", None)
    overwrite = given.pop("overwrite", False)
    if resume is not None and (out is not None or overwrite):
        raise UsageError("--resume writes where it reads; leave out --out and --overwrite")
    if {"compare", "optimizer"} <= given.keys():
        raise UsageError("--compare runs both optimizers; leave out --optimizer, or --compare")
    return Request(given, out, resume, overwrite)


def new_config(given: dict[str, Any]) -> Config:
    """Fill in what was not given from the machine and the size."""
    device = given.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; leave the option out")
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    name = given.get("size") or ("gpt2" if device == "cuda" else "tiny")
    size = SIZES[name]
    found = dict(size=name, steps=size.steps, batch=size.batch, lr=size.lr, threads=_usable_cores())
    config = Config(**found | given | dict(device=device, dtype="bfloat16" if bf16 else "float32"))
    try:
        config.schedule.bounds(config.lr, 0)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    return config


def resumed_config(saved: dict[str, Any], given: dict[str, Any]) -> Config:
    """The options of a checkpoint, some of which may be given anew.

    Raises:
        UsageError: the checkpoint is of another size, optimizer, ... than given.
    """
    try:
        config = Config(**saved)
    except TypeError as error:
        raise UsageError(f"the checkpoint's options do not fit this program: {error}") from None
    for name, value in given.items():
        ignored = name == "optimizer" and config.compare
        if name not in MAY_CHANGE and (ignored or getattr(config, name) != value):
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise UsageError(
                f"{option}: the checkpoint is of a run with {_in_words(config, name)}; leave the option out, or start "
                "another run with --out"
            )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("the checkpoint is of a run on a GPU, and PyTorch finds none here")
    return replace(config, **{name: value for name, value in given.items() if name in MAY_CHANGE})


def _in_words(config: Config, name: str) -> Any:
    if name in ("optimizer", "compare"):
        return "both optimizers" if config.compare else config.optimizer
    return "the default corpus" if name == "data" and config.data is None else getattr(config, name)


def _usable_cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), allowed)


def _count(text: str) -> int:
    return _whole(text, 1, 2**53)


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
        raise argparse.ArgumentTypeError(f"got {text}, allowed is {allowed}")
    return value


def _positive(text: str) -> float:
    return _number(text, "a positive number", lambda value: 0 < value < math.inf)


def _not_negative(text: str) -> float:
    return _number(text, "0 or a positive number", lambda value: 0 <= value < math.inf)


def _number(text: str, allowed: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"got {text}, allowed is {allowed}")
    return value
