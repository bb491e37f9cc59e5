"""The base of the level searches: what both need of a base schedule, and the windows that its length gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NoReturn

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.loss_driven import Kind, LossSchedule
from greedylr_fused.schedules.steps import Constant, StepSchedule
from greedylr_fused.schedules.wsd import WSD

#: The kinds of schedules that search.
SEARCHES = (Kind.CLIMB, Kind.ADALRS)
#: Slack of a level that is a product, when it is compared with a bound.
ROUNDING = 1e-9
#: A loss of this size or more is as one that is not finite: a product of its sums may not be.
HUGE_LOSS = 1e100


class Phase(IntEnum):
    """The state of a search: not begun, trying another level, measuring at its level, or over."""

    WAIT = 0
    TRIAL = 1
    CONTROL = 2
    FROZEN = 3


class Backup(IntEnum):
    """The copy after a step: none, of parameters and state to the backup, or of the backup back to these."""

    NONE = 0
    TAKE = 1
    PUT_BACK = 2


@dataclass(frozen=True)
class Windows:
    """The plan of a search in observations, all whole numbers: the length of a window, how many at its start do not
    count, in how many the level falls to 0 (0: it does not), that of the first window, and that after which none ends.
    """

    length: int
    settle: int
    anneal: int
    begin: int
    until: int

    def have_room(self, count: int, step: int = 0) -> bool:
        """Return whether so many windows end in time that begin after the step which follows this one, or later."""
        return max(step + 1, self.begin) + count * self.length <= self.until


class LevelSearch(LossSchedule):
    """A schedule that tries other levels over windows of steps, and puts parameters and optimizer state back after a
    trial that it does not keep. One machine, `search_spec`, of which each kind uses a part.

    Attributes:
        round_windows: windows that one round of the search takes.
        keeps_trials: whether the steps of a trial may stay, so that a step that breaks the weights must be skipped.
        windows: the plan.
        start: the first level, as a ratio of the starting LR.
    """

    round_windows: ClassVar[int] = 2
    keeps_trials: ClassVar[bool] = False

    start: float = 1.0
    windows: Windows
    base: StepSchedule
    window: float
    min_window: int
    begin: float | None
    until: float
    z: float
    snapshot: str

    def _plan(self, total: int, warmup: int) -> Windows:
        """Return the plan of a run of so many steps, after so many of warm-up."""
        raise NotImplementedError

    @property
    def levels(self) -> tuple[float, float]:
        """Return the lowest and the highest level, as ratios of the starting LR."""
        raise NotImplementedError

    def has_room(self, step: int) -> bool:
        """Return whether a round may still end in time after this step."""
        return self.windows.have_room(self.round_windows, step)

    def bounds(self, lr: float, group: int) -> tuple[float, float]:
        """Return `(0, highest level)` of a group with that starting LR: within a window the level may fall to 0."""
        return 0.0, self.levels[1] * lr

    def slots(self, warmup: int = 0) -> dict[str, float]:
        """Return the values of the control vector that this configuration fixes."""
        low, high = self.levels
        plan = self.windows
        return {
            "kind": float(self.kind),
            "window_size": float(plan.length),
            "settle": float(plan.settle),
            "anneal": float(plan.anneal),
            "search_begin": float(plan.begin),
            "search_until": float(plan.until),
            "lowest": low,
            "highest": high,
            "errors": self.z,
            "search_level": self.start,
            "trial_level": self.start,
            "multiplier": self.start,
        }

    def _length(self, window: int, total: int) -> int:
        return max(window, round(self.window * total))

    def _check_search(self, least_window: int) -> None:
        """Check the options that both kinds have, and make the plan."""
        name = type(self).__name__
        if not isinstance(self.base, StepSchedule):
            checks.mistype(self, "base", self.base, "a step schedule", "write base=Linear(total_steps=10_000)")
        if isinstance(self.base, Constant) or (isinstance(self.base, WSD) and self.base.total_steps is None):
            remedy = f"write {name}(base=Linear(total_steps=10_000)): its windows are shares of the run"
            checks.refuse(self, "base", self.base, "a step schedule that ends", remedy)
        checks.whole(self, "min_window", least=least_window)
        self._check_share("window", 0.03)
        self._check_share("until", 0.4)
        if self.begin is not None:
            self._check_share("begin", 0.1)
        self._check_number("z", "z >= 0", 0.0, math.inf, 2.0)
        checks.choice(self, "snapshot", ("device", "host"))
        curve = self.base.curve()
        total, warmup = len(curve) - 1, curve.index(max(curve))
        plan = self._plan(total, warmup)
        object.__setattr__(self, "windows", plan)
        if not self.has_room(0):
            self._refuse_short(total, warmup, plan)

    def _check_share(self, name: str, example: float) -> None:
        if not 0.0 <= checks.number(self, name, allowed=f"0 <= {name} <= 1", example=example) <= 1.0:
            checks.refuse(
                self, name, getattr(self, name), f"a share of the run, 0 <= {name} <= 1", f"write {example:g}"
            )

    def _check_number(self, name: str, allowed: str, least: float, most: float, example: float) -> None:
        if not least <= checks.number(self, name, allowed=allowed, example=example) <= most:
            checks.refuse(self, name, getattr(self, name), allowed, f"write {name}={example:g}")

    def _refuse_short(self, total: int, warmup: int, plan: Windows) -> NoReturn:
        """Refuse a run in which no round ends, with the least length that has room for one."""

        def fits(steps: int) -> bool:
            return self._plan(steps, warmup).have_room(self.round_windows)

        low, fitting = total, None  # not a bisection: with all the rounding some lengths beyond one that fits do not
        while fitting is None and low < checks.MAX_STEPS:
            high = low + max(64, low // 64)
            if fits(high):
                fitting = next(steps for steps in range(low, high + 1) if fits(steps))
            low = high
        remedy = f"write total_steps={fitting}" if fitting else "write a smaller window or begin, or larger until"
        needed = f"room for a round, {self.round_windows} x {plan.length} steps after {plan.begin}"
        checks.refuse(self, "until", f"{plan.until} of {total} steps", needed, remedy)
