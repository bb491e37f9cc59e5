"""Configuration of AdaLRS, a level that is tried higher when the loss falls more slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from greedylr_fused.schedules.loss_driven import Kind
from greedylr_fused.schedules.search import LevelSearch, Windows
from greedylr_fused.schedules.steps import StepSchedule


@dataclass(frozen=True, kw_only=True)
class AdaLRS(LevelSearch):
    """A learning rate that is tried higher when the loss falls more slowly, and kept, put back or cut by its slope.

    The LR of a step is the starting LR, times a level that all groups share, times the curve of `base`. The speed of a
    window is minus the least-squares slope of its losses. If a window is slower than the one before it at the same
    level, the next is a trial at max(L^n * up, 1) times the level, n being the changes so far. A trial that is faster
    by `z` errors keeps its level; one that is slower by `z` errors is undone, parameters and optimizer state included,
    and the level divided by max(L^n * down, 1); any other keeps its steps, not its level. A trial is undone as well
    when a loss is higher than any before it, or not finite, or its step is skipped for non-finite gradients. Two
    windows in turn in which the loss rises, be one of them a trial, cut the level too. The last step of a trial that is
    kept is judged by no loss: with this schedule `skip_nonfinite` is on unless it is turned off.

    Source: Dong et al., "AdaLRS: Loss-Guided Adaptive Learning Rate Search for Efficient Foundation Model Pretraining"
    (arXiv 2506.13274). The paper gives `up`, `down`, `decay`, `begin`, `until`, 2 errors, and the rules above. It does
    not give, and we chose: the length of a window; the error, which is the root mean square of both slopes' standard
    errors; what starts a trial; that an undecided trial keeps its steps; the bounds; that the highest loss is that of
    the whole run; and that the window after a cut only measures.

    Args:
        base: the step schedule; its `total_steps` are those of the run. Any that ends.
        window: steps of a window, as a share of the run, in [0, 1]. Default: 0.04.
        min_window: steps of a window at least, >= 3. Default: 8.
        begin: share of the run before the first window, in [0, 1]. Default: 0.1.
        until: share of the run after which no window ends, in [0, 1]. Default: 0.4.
        up: a trial's level is this times the level, >= 1. Default: 3.
        down: a cut divides the level by it, >= 1. Default: 2.
        decay: L, by which each change multiplies both, in (0, 1]. Default: 0.99.
        low: the lowest level, as a ratio of the starting LR, in (0, 1]. Default: 1/16.
        high: the highest level, >= 1. Default: 16.
        z: errors by which a trial must be faster, or slower, >= 0. Default: 2.
        snapshot: where parameters and state are kept once more until the search is over: "device" or, for a GPU's,
            "host", in pinned memory, over PCIe. Default: "device".

    Raises:
        ValueError: an option is outside its range, `base` does not end, or the run has no room for two windows.
        TypeError: an option has the wrong type.
    """

    base: StepSchedule
    window: float = 0.04
    min_window: int = 8
    begin: float = 0.10
    until: float = 0.40
    up: float = 3.0
    down: float = 2.0
    decay: float = 0.99
    low: float = 1 / 16
    high: float = 16.0
    z: float = 2.0
    snapshot: str = "device"

    kind: ClassVar[Kind] = Kind.ADALRS
    keeps_trials: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_number("up", "up >= 1", 1.0, math.inf, 3.0)
        self._check_number("down", "down >= 1", 1.0, math.inf, 2.0)
        self._check_number("decay", "0 < decay <= 1", math.ulp(0.0), 1.0, 0.99)
        self._check_number("low", "0 < low <= 1", math.ulp(0.0), 1.0, 1 / 16)
        self._check_number("high", "high >= 1", 1.0, math.inf, 16.0)
        self._check_search(least_window=3)

    @property
    def levels(self) -> tuple[float, float]:
        """Return `low` and `high`."""
        return self.low, self.high

    def slots(self, warmup: int = 0) -> dict[str, float]:
        """Return the values of the control vector that this configuration fixes."""
        return super().slots(warmup) | {"raise_by": self.up, "cut_by": self.down, "fade": self.decay}

    def _plan(self, total: int, warmup: int) -> Windows:
        length = self._length(self.min_window, total)
        return Windows(length, 0, 0, max(1, round(self.begin * total)), round(self.until * total))
