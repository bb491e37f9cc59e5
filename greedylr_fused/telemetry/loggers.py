"""Loggers: anything called as `log(metrics, step)`, and TensorBoard's writer made into one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from greedylr_fused.telemetry.history import Step

#: `log(metrics, step)`: a flat dictionary of floats, and the number of the step.
Log = Callable[[dict[str, float], int], Any]


def tensorboard(writer: Any) -> Log:
    """Return a logger that writes each metric as a scalar of its name.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar(name, value, step)`.

    Raises:
        TypeError: the writer has no `add_scalar`.
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"tensorboard(): expected a SummaryWriter, got {type(writer).__name__}; write "
            'tensorboard(torch.utils.tensorboard.SummaryWriter("runs/first"))'
        )

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


class Feed:
    """Queue that hands steps to a logger, in order, each once.

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
        """Queue a step, to be handed over by `flush`."""
        if step.number % self._every == 0:
            self._waiting.append(step)

    def flush(self) -> None:
        """Hand over the steps in the queue.

        Raises:
            Exception: what the logger raises. The next call begins with the same step.
        """
        while self._waiting:
            self.log(self._waiting[0].scalars(self._prefix), self._waiting[0].number)
            self._waiting.popleft()
