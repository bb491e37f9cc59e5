"""The bases of the loss-driven schedules: what an optimizer asks of each; checks, bounds and slots of those that count
observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, ClassVar

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.steps import StepSchedule


class Kind(IntEnum):
    """The kind of schedule that decides the level of an optimizer's LR (`csrc/core/slots.h`)."""

    NONE = 0
    GREEDY = 1
    PLATEAU = 2
    CLIMB = 3
    ADALRS = 4


class CompareWith(IntEnum):
    """The observation to compare with: the best of those that were not waited through, the best of all, or the last."""

    BEST_WHILE_DECIDING = 0
    BEST = 1
    LAST = 2


class Event(IntEnum):
    """The decision of the loss in a step: a change of the level, not one that a bound or `eps` left out. A reset is an
    event too if it changed the best alone. Of a search: a change of the level outside trials, or else that it ended
    (FREEZE), that a trial began (TRY), or that one ended (BACK).
    """

    NONE = 0
    RAISE = 1
    CUT = 2
    RESET = 3
    TRY = 4
    BACK = 5
    FREEZE = 6


class LossSchedule:
    """A schedule that moves a level per parameter group by the loss of each step. The learning rate is that level,
    times the curve of `base` if there is one.

    Attributes:
        kind: the kind of schedule, in checkpoints.
        ring: how many of the last losses are kept.
    """

    kind: ClassVar[Kind]

    ring: int = 0
    base: StepSchedule | None

    def bounds(self, lr: float, group: int) -> tuple[float, float]:
        """Return the bounds of the level of the group with that index and starting LR."""
        raise NotImplementedError

    def check_groups(self, n_groups: int) -> None:
        """Refuse options that do not fit so many groups; there are none unless a schedule says so."""

    def slots(self, warmup: int = 0) -> dict[str, float]:
        """Return the values of the control vector that this configuration fixes.

        Args:
            warmup: steps of the warm-up of `base`.
        """
        raise NotImplementedError


class Counting(LossSchedule):
    """A schedule that counts observations which are better than what it remembers, and those which are not.

    All are one machine (`loss_spec`) with other values of the options below, which are fields of the frozen dataclasses
    that derive from this class, or fixed by them.

    Attributes:
        raises: whether better observations raise the level.
    """

    raises: ClassVar[bool]

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    warmup: int
    reset_start: int
    forget_every: int
    eps: float
    smooth: bool
    window_size: int
    hold: int | None

    @property
    def ring(self) -> int:  # type: ignore[override]
        return self.window_size if self.smooth else 0

    @property
    def compare_with(self) -> CompareWith:
        """Return what observations are compared with."""
        raise NotImplementedError

    def check_groups(self, n_groups: int) -> None:
        """Refuse a per-group list of the wrong length."""
        for name in ("min_lr", "max_lr"):
            value = getattr(self, name, None)
            if isinstance(value, tuple) and len(value) != n_groups:
                raise ValueError(
                    f"{type(self).__name__} {name}: expected one number or one per parameter group ({n_groups}), got "
                    f"{len(value)} values; pass a single number to use it for every group"
                )

    def slots(self, warmup: int = 0) -> dict[str, float]:
        same = ("factor", "patience", "threshold", "cooldown", "warmup", "eps", "smooth", "window_size", "reset_start")
        return {
            "kind": float(self.kind),
            "mode_max": float(self.mode == "max"),
            "threshold_rel": float(self.threshold_mode == "rel"),
            "best": -math.inf if self.mode == "max" else math.inf,
            "warmup_left": float(warmup if self.hold is None else self.hold),
            "resets_left": float(self.reset_start),
            "forget_left": float(self.forget_every),
            **{name: float(getattr(self, name)) for name in (*same, "raises", "compare_with", "forget_every")},
        }

    def bound_of(self, name: str, group: int, default: float) -> float:
        """Return one bound of one group: what was given for it, or the default."""
        value: Any = getattr(self, name)
        if isinstance(value, tuple):
            if group >= len(value):
                self.check_groups(group + 1)
            value = value[group]
        return default if value is None else float(value)

    def _check(self, counts: Sequence[tuple[str, int]]) -> None:
        """Check the fields above, and that each of `counts` is at least the number beside it."""
        checks.choice(self, "mode", ("min", "max"))
        checks.choice(self, "threshold_mode", ("abs", "rel"))
        for name, allowed, example in (
            ("factor", "0 < factor < 1", 0.95),
            ("threshold", ">= 0", 1e-6),
            ("eps", ">= 0", 1e-8),
        ):
            checks.number(self, name, allowed=allowed, example=example)
        if not 0.0 < self.factor < 1.0:
            remedy = f"write factor={type(self).factor}"
            checks.refuse(self, "factor", self.factor, "a number between 0 and 1, both excluded", remedy)
        if self.threshold < 0 or (self.threshold_mode == "rel" and self.threshold >= 1):
            checks.refuse(self, "threshold", self.threshold, "a number >= 0, < 1 if relative", "write threshold=1e-6")
        if self.eps < 0:
            checks.refuse(self, "eps", self.eps, "a number >= 0", "write eps=1e-8, or eps=0 to make every change")
        for name, least in counts:
            checks.whole(self, name, least=least, most=2**53 - 1)
        if not isinstance(self.smooth, bool):
            checks.mistype(self, "smooth", self.smooth, "True or False", "write smooth=True")
        if self.hold is not None:
            checks.whole(self, "hold", least=0, most=2**53 - 1)
        if self.base is not None and not isinstance(self.base, StepSchedule):
            checks.mistype(self, "base", self.base, "None or a step schedule", "write base=Cosine(total_steps=10_000)")

    def _bound(self, name: str, value: Any) -> float | tuple[float, ...] | None:
        """Return a bound as a float, or one per group; None for None."""
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return tuple(self._bound(name, item) for item in value)  # type: ignore[misc]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            checks.mistype(self, name, value, "a number", f"write e.g. {name}=1e-5")
        if not 0 <= value < math.inf:
            checks.refuse(self, name, value, "a finite learning rate >= 0", f"leave {name} out for its default")
        return float(value)
