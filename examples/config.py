"""The run's options: sizes by name, and the dataclass that a checkpoint keeps."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from greedylr_fused.schedules import LossSchedule, StepSchedule

import lr_schedules
from engine import Ranks
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
    schedule: str = "greedy"
    warmup_steps: int = 0
    decay_steps: int | None = None
    min_lr_ratio: float = 0.0
    values: tuple[float, ...] = ()  # of a schedule in a file
    record_norms: bool = False
    trial_steps: int | None = None  # of a search

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
    def kind(self) -> str:
        """In a word, which optimizers train."""
        return "compare" if self.compare else self.optimizer

    @property
    def lr_schedule(self) -> StepSchedule | LossSchedule | None:
        """What decides the LR from step to step, on the device; None where a search does, on the host."""
        return lr_schedules.build(self)

    @property
    def searches(self) -> bool:
        """Whether the host finds the LR by trials."""
        return self.schedule == lr_schedules.SEARCH

    @property
    def loss_driven(self) -> bool:
        """Whether each loss is compared with a best one."""
        return isinstance(self.lr_schedule, LossSchedule) and self.schedule not in lr_schedules.LEVELS


def new_config(given: dict[str, Any]) -> Config:
    """Fill in what was not given from the machine and the size."""
    device = given.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; leave the option out")
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    name = given.get("size") or ("gpt2" if device == "cuda" else "tiny")
    size = SIZES[name]
    found = dict(size=name, steps=size.steps, batch=size.batch, lr=size.lr, threads=_usable_cores())
    schedule = given.get("schedule", Config.schedule)
    lr_schedules.check_given(schedule, given)
    if schedule == lr_schedules.SEARCH:
        found |= dict(trial_steps=lr_schedules.trial_steps(given.get("steps", size.steps)))
    if schedule not in lr_schedules.NAMES:
        found |= lr_schedules.read(schedule)
    config = Config(**found | given | dict(device=device, dtype="bfloat16" if bf16 else "float32"))
    lr_schedules.check_baseline(config)
    return _checked(config)


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
    return _checked(replace(config, **{name: value for name, value in given.items() if name in MAY_CHANGE}))


def _checked(config: Config) -> Config:
    """The same, with a schedule that can be.

    Raises:
        UsageError: an option of it is out of range.
    """
    try:
        schedule = config.lr_schedule
        if isinstance(schedule, LossSchedule):
            schedule.bounds(config.lr, 0)
        if config.searches:
            lr_schedules.search(config)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from None
    return config


def check_ranks(config: Config, ranks: Ranks) -> None:
    """Refuse what several processes cannot do, or not to the same result as one.

    Raises:
        UsageError: a batch that does not divide, more processes than GPUs, the baseline.
    """
    if "torch" in config.optimizers and ranks.engine:
        what = "--compare" if config.compare else "--optimizer torch"
        raise UsageError(f"{what}: the baseline decides from the loss of its own rank; run it without torchrun")
    if config.searches and ranks.engine:
        raise UsageError(f"--schedule {config.schedule}: its trials are those of one process; run it without torchrun")
    if config.batch % ranks.size:
        raise UsageError(
            f"--batch: expected a multiple of {ranks.size}, the number of ranks, got {config.batch} windows; choose "
            "another --batch or --nproc-per-node"
        )
    if config.device == "cuda" and ranks.engine:
        here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > found:
            raise UsageError(
                f"--nproc-per-node: expected at most {found}, one for each GPU of the machine, got {here}; start fewer"
            )


def _in_words(config: Config, name: str) -> Any:
    if name in ("optimizer", "compare"):
        return "both optimizers" if config.compare else config.optimizer
    return "the default corpus" if name == "data" and config.data is None else getattr(config, name)


def _usable_cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), allowed)
