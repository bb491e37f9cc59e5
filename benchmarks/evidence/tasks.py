"""What is trained: the catalogue of tasks, with sizes for two cores and one for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.evidence import corpora
from benchmarks.evidence.models import MLP, ConvNet
from benchmarks.evidence.trainees import DigitsTrainee, Setting, TextTrainee, Trainee
from benchmarks.example import GPT, SIZES, Shape


@dataclass(frozen=True)
class Task:
    """Something to train.

    Attributes:
        name: as in `--tasks`.
        about: in a line.
        model: makes it.
        trainee: from the model, the batch and the setting of a run.
        batch: images or windows per step.
        steps: of a standard run.
        grid: peak learning rates to choose from, ascending.
        start: the task whose trained parameters this one starts from, or None.
        gpu: whether it takes a GPU.
    """

    name: str
    about: str
    model: Callable[[], Any]
    trainee: Callable[[Callable[[], Any], int, Setting], Trainee]
    batch: int
    steps: int
    grid: tuple[float, ...]
    start: str | None = None
    gpu: bool = False

    def make(self, setting: Setting) -> Trainee:
        """The model at its start, with its batches."""
        return self.trainee(self.model, self.batch, setting)

    def parameters(self) -> int:
        """How many numbers are trained; takes no memory."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.model().parameters())


def _program(model: Callable[[], GPT], batch: int, setting: Setting) -> Trainee:
    """Text of the standard library; where the data change, it becomes pydoc's topics."""
    return TextTrainee(model, batch, (corpora.stdlib(), corpora.topics()), setting)


def _prose(model: Callable[[], GPT], batch: int, setting: Setting) -> Trainee:
    """The other way round."""
    return TextTrainee(model, batch, (corpora.topics(), corpora.stdlib()), setting)


def _tiny() -> GPT:
    return GPT(Shape(layers=2, width=64, heads=2, kv_heads=2, hidden=128, context=64))


def _small() -> GPT:
    return GPT(Shape(layers=3, width=96, heads=3, kv_heads=3, hidden=256, context=64))


def _medium() -> GPT:
    return GPT(Shape(layers=4, width=224, heads=4, kv_heads=4, hidden=576, context=64))


def _wider() -> ConvNet:
    """Most of its weights lie in tensors that can have 8-bit moments."""
    return ConvNet((16, 64, 128))


_LARGE = SIZES["gpt2"]
_WIDE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_HIGH = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_ON = "bytes of the standard library"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mlp", "an MLP on digits", MLP, DigitsTrainee, 8, 1200, _WIDE),
        Task("convnet", "a ConvNet on digits", ConvNet, DigitsTrainee, 16, 800, _WIDE),
        Task("convnet-wide", "a wider ConvNet on digits, in few steps", _wider, DigitsTrainee, 16, 200, _WIDE),
        Task("gpt-tiny", f"a tiny GPT on {_ON}", _tiny, _program, 4, 500, _HIGH),
        Task("gpt-small", f"a small GPT on {_ON}", _small, _program, 8, 400, _HIGH),
        Task("gpt-medium", f"a GPT of millions of parameters on {_ON}, in few steps", _medium, _program, 4, 400, _HIGH),
        Task(
            "finetune", f"the tiny GPT, trained on {_ON}, on pydoc's topics", _tiny, _prose, 4, 300, _WIDE, "gpt-tiny"
        ),
        Task(
            "gpt2-124m",
            f"a GPT as large as GPT-2 on {_ON}, on a GPU",
            lambda: GPT(_LARGE.shape),
            _program,
            _LARGE.batch,
            _LARGE.steps,
            (1e-4, 3e-4, 6e-4, 1e-3, 3e-3),
            gpu=True,
        ),
    )
}
