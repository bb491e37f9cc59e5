"""The live line: step, loss, smoothed loss, LR, tokens/s, time left; plain lines where there is no terminal.

Losses are shown in bits per byte.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from greedylr_fused.step.mirror import Metrics
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from config import Config
from trainer import Trainer


class Display:
    """Shows the latest metrics; a context manager.

    Args:
        config: the run's options.
        trainers: what to show a line for.
        console: where to.
    """

    def __init__(self, config: Config, trainers: Sequence[Trainer], console: Console) -> None:
        self._config, self._trainers, self._console = config, trainers, console
        self._begin = time.perf_counter()
        self._done_before = sum(trainer.steps for trainer in trainers)
        bar = [BarColumn(16)] if console.width >= 100 else []  # the numbers need some 80 columns
        steps = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(config.steps)) + 1))
        text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (
            TextColumn("{task.description:5}", table_column=Column(no_wrap=True, min_width=5)),
            *bar,
            steps,
            text,
        )  # the text is what gives way
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = {
            trainer.name: self._progress.add_task(trainer.name, total=config.steps, completed=trainer.steps, text="")
            for trainer in trainers
        }

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, trainer: Trainer, metrics: Metrics) -> None:
        """After one step. Reads numbers that have arrived, and waits for none."""
        live = self._console.is_terminal
        # Bad and finite: the loss is an earlier step's, as this one was skipped.
        skipped = trainer.bad_steps > 0 and math.isfinite(metrics.loss)
        loss = "skipped" if skipped else f"{metrics.loss / math.log(2):.3f}"
        if not live and trainer.steps % self._config.log_every and trainer.steps != self._config.steps:
            return
        text = (
            f"bits/byte {loss} (smoothed {metrics.smoothed_loss / math.log(2):.3f})  lr {metrics.lr[0]:.2e}  "
            f"{trainer.recent_tokens_per_second:,.0f} tok/s  {self._time_left()} left"
        )
        if metrics.skipped:
            text += f"  {metrics.skipped} skipped"
        if live:
            self._progress.update(self._tasks[trainer.name], completed=trainer.steps, text=text)
        else:
            self.say(f"{trainer.name:5}  step {trainer.steps:4d}/{self._config.steps}  {text}")

    def say(self, line: str) -> None:
        """Print a line above the live one."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        done = sum(trainer.steps for trainer in self._trainers)
        left = len(self._trainers) * self._config.steps - done
        seconds = round((time.perf_counter() - self._begin) / max(1, done - self._done_before) * left)
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
