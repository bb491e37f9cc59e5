"""Loggers: anything that takes `log(metrics, step)`, and TensorBoard's writer made into that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from greedylr_fused.telemetry.history import Step

#: `log(metrics, step)`: a flat dictionary of floats, and the number of the step.
Log = Callable[[dict[str, float], int], Any]


def tensorboard(writer: Any) -> Log:
    """What writes each metric as a scalar of that name.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar(name, value, step)`.

    Raises:
        TypeError: it has none.
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"tensorboard(): got {type(writer).__name__}, allowed is a SummaryWriter; write "
            'tensorboard(torch.utils.tensorboard.SummaryWriter("runs/first"))'
        )

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


class Feed:
    """Hands the steps to a logger, one after the other, each once.

    Args:
        log: the logger.
        every: only steps whose number is a multiple of this.
        prefix: of every name.
    """

    def __init__(self, log: Log, *, every: int, prefix: str) -> None:
        self.log = log
        self._every, self._prefix = every, prefix
        self._waiting: deque[Step] = deque()

    def put(self, step: Step) -> None:
        """Take down a step, to be handed over by `flush`."""
        if step.number % self._every == 0:
            self._waiting.append(step)

    def flush(self) -> None:
        """Hand over what was put since.

        Raises:
            Exception: what the logger raises. The step in which it did is the first of the next time.
        """
        while self._waiting:
            self.log(self._waiting[0].scalars(self._prefix), self._waiting[0].number)
            self._waiting.popleft()
