"""ReduceOnPlateau in plain Python floats: the specification, R1..R3, that every device form carries the tags of.

Semantics: `torch.optim.lr_scheduler.ReduceLROnPlateau` 2.13, except for non-finite losses (R1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from greedylr_fused.schedules.greedy_spec import Window, is_better
from greedylr_fused.schedules.plateau import ReduceOnPlateau


class PlateauSpec:
    """Host-side ReduceOnPlateau over plain floats.

    Args:
        config: the options; without `base`.
        lrs: starting learning rate of each parameter group.
    """

    def __init__(self, config: ReduceOnPlateau, lrs: Sequence[float]) -> None:
        config.check_groups(len(lrs))
        self.config = config
        self.lr = [float(lr) for lr in lrs]
        self.min_lr = [config.bounds(lr, g)[0] for g, lr in enumerate(self.lr)]
        self.best = -math.inf if config.mode == "max" else math.inf
        self.bad = self.cooldown_left = 0
        self.window = Window(config.window_size)

    def observe(self, loss: float) -> list[float]:
        """Take the loss of one step; return the learning rate of every group for the next step."""
        x = float(loss)
        finite = math.isfinite(x)
        if finite and self.config.smooth:
            x = self.window.mean_with(x)
        if finite and is_better(self.config, x, self.best):  # R1: it compares while it waits
            self.best = x
            self.bad = 0
        else:
            self.bad += 1
        if self.cooldown_left > 0:  # R2
            self.cooldown_left -= 1
            self.bad = 0
        if self.bad > self.config.patience:  # R3
            for g, lr in enumerate(self.lr):
                new = max(lr * self.config.factor, self.min_lr[g])
                if lr - new > self.config.eps:
                    self.lr[g] = new
            self.cooldown_left = self.config.cooldown
            self.bad = 0
        return list(self.lr)
