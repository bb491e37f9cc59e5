"""The schedules that count observations in plain Python floats: every device form is tested against them, bit for bit.

Steps are tagged C1..C9; `csrc/core/observe.h`, the Triton kernel and the reference backend carry the same tags.
Semantics: `transformers.optimization.GreedyLR` 5.17 and `torch.optim.lr_scheduler.ReduceLROnPlateau` 2.13, except for
non-finite losses (C2, C4), and what neither has: `forget_every` (C3), `compare` (C5).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from greedylr_fused.schedules.loss_driven import CompareWith, Counting, Event


class Window(deque[float]):
    """The last losses, at most `size`, and their running sum."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.sum = size, 0.0

    def mean_with(self, x: float) -> float:
        """Return the mean with x in the window. Add first, evict after, divide by what is there."""
        self.append(x)
        self.sum += x
        if len(self) > self.size:
            self.sum -= self.popleft()
        return self.sum / len(self)


class LossSpec:
    """Such a schedule on the host, over plain floats.

    Args:
        config: the options; without `base`.
        lrs: starting learning rate of each parameter group.

    Attributes:
        event: what the last observation decided.
    """

    def __init__(self, config: Counting, lrs: Sequence[float]) -> None:
        config.check_groups(len(lrs))
        self.config = config
        self.lr = [float(lr) for lr in lrs]
        self.initial_lr = list(self.lr)
        bounds = [config.bounds(lr, g) for g, lr in enumerate(self.lr)]
        self.min_lr = [low for low, _ in bounds]
        self.max_lr = [high for _, high in bounds]
        self.event = Event.NONE
        self._start_over()
        self.warmup_left = config.hold or 0

    def _start_over(self) -> None:
        self._forget()
        self.cooldown_left = self.warmup_left = 0
        self.resets_left = self.config.reset_start
        self.window = Window(self.config.window_size)

    def _forget(self) -> None:
        self.best = -math.inf if self.config.mode == "max" else math.inf
        self.good = self.bad = 0
        self.forget_left = self.config.forget_every

    @property
    def window_sum(self) -> float:
        return self.window.sum

    def observe(self, loss: float) -> list[float]:
        """Take the loss of one step; return the learning rate of every group for the next step."""
        x, self.event, best_before = float(loss), Event.NONE, self.best  # C1: the observation
        finite = math.isfinite(x)
        if finite and self.config.smooth:  # C2: window
            x = self.window.mean_with(x)
        if self.config.forget_every:  # C3: first forget the best when that is due
            if self.forget_left == 0:
                self._forget()
            self.forget_left -= 1
        waits = self.cooldown_left > 0 or self.warmup_left > 0
        better = finite and self._is_better(x)  # C4: compare
        if self._remembers(finite, better, waits):  # C5
            self.best = x
        if self.cooldown_left > 0:  # cooldown first, then warmup, never both in one call
            self.cooldown_left -= 1
            self.good = self.bad = 0
        elif self.warmup_left > 0:
            self.warmup_left -= 1
            self.good = self.bad = 0
        else:
            self._decide(better, best_before)
        return list(self.lr)

    def _decide(self, better: bool, best_before: float) -> None:
        self.good, self.bad = (self.good + 1, 0) if better else (0, self.bad + 1)
        if self.config.raises and self.good > self.config.patience:  # C6: raise
            for g, lr in enumerate(self.lr):
                new = min(lr / self.config.factor, self.max_lr[g])
                if new - lr > self.config.eps:
                    self.lr[g], self.event = new, Event.RAISE
            self.resets_left = self.config.reset_start
            self.warmup_left = self.config.warmup
            self.good = 0
        elif self.bad > self.config.patience:  # C7: cut
            for g, lr in enumerate(self.lr):
                new = max(lr * self.config.factor, self.min_lr[g])
                if lr - new > self.config.eps:
                    self.lr[g], self.event = new, Event.CUT
            if all(lr <= low for lr, low in zip(self.lr, self.min_lr, strict=True)):
                self.resets_left -= 1
                if self.resets_left <= 0:  # C8: reset
                    changed = self.event is Event.CUT or self.lr != self.initial_lr
                    self.lr = list(self.initial_lr)
                    self._start_over()
                    if changed or self.best != best_before:
                        self.event = Event.RESET
            self.cooldown_left = self.config.cooldown  # C9: after a reset too, as upstream
            self.bad = 0

    def _is_better(self, x: float) -> bool:
        threshold, relative, best = self.config.threshold, self.config.threshold_mode == "rel", self.best
        if self.config.mode == "min":
            return x < (best * (1.0 - threshold) if relative else best - threshold)
        return x > (best * (1.0 + threshold) if relative else best + threshold)

    def _remembers(self, finite: bool, better: bool, waits: bool) -> bool:
        if self.config.compare_with is CompareWith.LAST:
            return finite
        return better and (self.config.compare_with is CompareWith.BEST or not waits)
