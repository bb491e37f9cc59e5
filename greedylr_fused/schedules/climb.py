"""Configuration of Climb, a level that rises from below as long as trials speak for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from greedylr_fused.schedules.loss_driven import Kind
from greedylr_fused.schedules.search import ROUNDING, LevelSearch, Windows
from greedylr_fused.schedules.steps import StepSchedule


@dataclass(frozen=True, kw_only=True)
class Climb(LevelSearch):
    """A learning rate that starts below the optimizer's, and climbs as long as a trial at a higher level is better.

    The LR of a step is the starting LR, times a level that all groups share, times the curve of `base`. A round of the
    search is two windows of equal length: a trial at `factor` times the level; then, with parameters and optimizer
    state put back, the same number of steps at the level itself, the control. Both end in an anneal to 0, and the mean
    losses at their ends are compared. A level is taken if its trial wins by `z` standard errors of the difference, and
    above the starting LR only then. Up to it a level needs no proof: after a trial that does not win so, a second round
    tries the same level, and it is taken unless that one fails, or both lose, and together by `z` (one that failed
    counts for nothing there); without time for a second, unless the first fails or loses by `z`. There a trial's
    losses scatter, for the error, at most as its control's do: one that explodes loses. With a level that is taken a
    next round begins, otherwise the search is over and the level stays. The control's steps are kept: a round costs one
    window of the run. Parameters and state are kept once more meanwhile.

    A step counts once it is made. A trial whose loss is not finite, or whose step is skipped for non-finite gradients,
    has failed: it is put back at once, and above the starting LR that is the end. The step of `base` is never put back,
    and neither are data and random numbers.

    Source: ours. Measured beside other forms of it (from above, without an anneal, by slopes): the harm of an LR that
    is too high is done in the warm-up, so that no search from above repairs it. All defaults are choices of ours.
    What it was worth, and where it lost, a fine-tune among them, is in docs/methods.md.

    Args:
        base: the step schedule; its `total_steps` are those of the run, the search's own included. A `Linear` to 0
            after a warm-up, or any other that ends.
        window: steps of a window, as a share of the run, in [0, 1]. Default: 0.03.
        min_window: steps of a window at least, >= 4. Default: 20.
        anneal: share of a window, at its end, in which the LR falls linearly to 0; 0 for none. In [0, 1]. Default: 1.
        tail: share of a window, at its end, of which the mean loss is taken (4 losses at least). In [0, 1].
            Default: 1/3.
        begin: share of the run before the first trial, in [0, 1]; one step at least. Default: None, the warm-up of
            `base`.
        until: share of the run after which no window ends, in [0, 1]; steps without a loss are not counted. If time is
            up while the level is below 1 and no trial has lost there, it becomes 1. Default: 0.4.
        start: the first level, as a ratio of the starting LR, > 0 and at most `top`. Default: 1/3.
        factor: of a trial's level to the level, > 1. Default: 3.
        top: the highest level, >= 1. Default: 9.
        z: standard errors of the difference by which a trial above the starting LR must win, and by which two trials up
            to it must lose together to be the end. >= 0. Default: 2.
        snapshot: where parameters and state are kept once more until the search is over: "device" or, for a GPU's,
            "host", in pinned memory, over PCIe. Default: "device".

    Raises:
        ValueError: an option is outside its range, `base` does not end, or the run has no room for one round.
        TypeError: an option has the wrong type.
    """

    base: StepSchedule
    window: float = 0.03
    min_window: int = 20
    anneal: float = 1.0
    tail: float = 1 / 3
    begin: float | None = None
    until: float = 0.40
    start: float = 1 / 3
    factor: float = 3.0
    top: float = 9.0
    z: float = 2.0
    snapshot: str = "device"

    kind: ClassVar[Kind] = Kind.CLIMB

    def __post_init__(self) -> None:
        self._check_share("anneal", 1.0)
        self._check_share("tail", 1 / 3)
        self._check_number("top", "top >= 1", 1.0, math.inf, 9.0)
        self._check_number("start", "0 < start <= top", math.ulp(0.0), self.top, 1 / 3)
        self._check_number("factor", "factor > 1", 1.0 + 2 * ROUNDING, math.inf, 3.0)
        self._check_search(least_window=4)

    @property
    def levels(self) -> tuple[float, float]:
        """Return 0, and `top` with room for the rounding of a product."""
        return 0.0, self.top * (1.0 + ROUNDING)

    def slots(self, warmup: int = 0) -> dict[str, float]:
        """Return the values of the control vector that this configuration fixes."""
        return super().slots(warmup) | {"raise_by": self.factor}

    def _plan(self, total: int, warmup: int) -> Windows:
        length = self._length(self.min_window, total)
        settle = length - max(4, round(self.tail * length))
        begin = max(1, warmup if self.begin is None else round(self.begin * total))
        return Windows(length, settle, round(self.anneal * length), begin, round(self.until * total))
