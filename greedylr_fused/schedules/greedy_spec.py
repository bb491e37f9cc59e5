"""GreedyLR in plain Python floats: the specification that every device form is tested against, bit for bit.

Steps are tagged C1..C9; `csrc/core/control.h`, the Triton kernel and the reference backend carry the same tags.
Semantics: `transformers.optimization.GreedyLR` 5.17, except for non-finite losses (C2, C4).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from greedylr_fused.schedules.greedy import GreedyLR


class GreedySpec:
    """Host-side GreedyLR over plain floats.

    Args:
        config: the options.
        lrs: starting learning rate of each parameter group.
    """

    def __init__(self, config: GreedyLR, lrs: Sequence[float]) -> None:
        config.check_groups(len(lrs))
        self.config = config
        self.lr = [float(lr) for lr in lrs]
        self.initial_lr = list(self.lr)
        bounds = [config.bounds(lr, g) for g, lr in enumerate(self.lr)]
        self.min_lr = [low for low, _ in bounds]
        self.max_lr = [high for _, high in bounds]
        self.resets_left = 0
        self.window: deque[float] = deque()
        self._start_over()

    def _start_over(self) -> None:
        self.best = -math.inf if self.config.mode == "max" else math.inf
        self.good = self.bad = self.cooldown_left = self.warmup_left = 0
        self.resets_left = self.config.reset_start
        self.window.clear()
        self.window_sum = 0.0

    def observe(self, loss: float) -> list[float]:
        """Take the loss of one step; return the learning rate of every group for the next step."""
        x = float(loss)  # C1: the observation
        finite = math.isfinite(x)
        if finite and self.config.smooth:  # C2: window; add first, evict after, divide by what is there
            self.window.append(x)
            self.window_sum += x
            if len(self.window) > self.config.window_size:
                self.window_sum -= self.window.popleft()
            x = self.window_sum / len(self.window)
        if self.cooldown_left > 0:  # C3: gates; cooldown first, then warmup, never both in one call
            self.cooldown_left -= 1
            self.good = self.bad = 0
        elif self.warmup_left > 0:
            self.warmup_left -= 1
            self.good = self.bad = 0
        else:
            self._decide(x, finite)
        return list(self.lr)

    def _decide(self, x: float, finite: bool) -> None:
        if finite and self._is_better(x):  # C4: compare
            self.best = x  # C5: count
            self.good, self.bad = self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good > self.config.patience:  # C6: raise
            for g, lr in enumerate(self.lr):
                new = min(lr / self.config.factor, self.max_lr[g])
                if new - lr > self.config.eps:
                    self.lr[g] = new
            self.resets_left = self.config.reset_start
            self.warmup_left = self.config.warmup
            self.good = 0
        elif self.bad > self.config.patience:  # C7: cut
            for g, lr in enumerate(self.lr):
                new = max(lr * self.config.factor, self.min_lr[g])
                if lr - new > self.config.eps:
                    self.lr[g] = new
            if all(lr <= low for lr, low in zip(self.lr, self.min_lr, strict=True)):
                self.resets_left -= 1
                if self.resets_left <= 0:  # C8: reset
                    self.lr = list(self.initial_lr)
                    self._start_over()
            self.cooldown_left = self.config.cooldown  # C9: after a reset too, as upstream
            self.bad = 0

    def _is_better(self, x: float) -> bool:
        threshold, relative = self.config.threshold, self.config.threshold_mode == "rel"
        if self.config.mode == "min":
            return x < (self.best * (1.0 - threshold) if relative else self.best - threshold)
        return x > (self.best * (1.0 + threshold) if relative else self.best + threshold)
