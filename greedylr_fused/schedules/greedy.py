"""Configuration of GreedyLR, a learning rate that the loss raises and cuts.

Source: Subramanian & Kumar, "GreedyLR: A Novel Adaptive Learning Rate Scheduler" (arXiv 2512.14527), in the form of
`transformers.optimization.GreedyLR` 5.17, whose option names are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from greedylr_fused.schedules import checks
from greedylr_fused.schedules.loss_driven import CompareWith, Counting, Kind
from greedylr_fused.schedules.steps import StepSchedule

#: Bounds when neither a bound nor its ratio is given, as ratios of each group's starting LR. The floor of one tenth is
#: the paper's (its appendix on small models). The ceiling is ours: upstream's absolute 1.0 is no bound for AdamW.
#: Measured, as `smooth` and the other defaults, in benchmarks/results/convergence-cpu/REPORT.md: no other bounds were
#: better on all tasks, and a ceiling of the starting LR was worse.
DEFAULT_MIN_RATIO = 0.1
DEFAULT_MAX_RATIO = 10.0


@dataclass(frozen=True, kw_only=True)
class GreedyLR(Counting):
    """A learning rate that rises while the loss improves, and is cut while it does not.

    The unit of `patience`, `cooldown`, `warmup` and `window_size` is *observations*: one per optimizer step. Counting
    restarts after every change, so the LR changes at most once in `patience + 1` observations. All groups share one
    decision; each keeps its own LR and bounds.

    Pass it as `FusedAdamW(..., schedule=GreedyLR(...))`; the decision is then taken on the device from the loss of
    each step, with no host synchronisation. A non-finite loss counts as not better and enters neither the window nor
    the best.

    Args:
        mode: "min" if a smaller loss is better, "max" if a larger one is. Default: "min".
        factor: a cut multiplies the LR by it, a raise divides by it. In (0, 1); the paper advises at least 0.5.
            Default: 0.95.
        patience: the LR changes on observation number `patience + 1` in a row that was better (raise) or was not
            (cut). >= 0. Default: 10.
        threshold: a loss is better only if it beats the best by more than this. >= 0, and < 1 if relative.
            Default: 1e-6.
        threshold_mode: "abs", a margin in units of the loss, or "rel", a share of the best, for losses that stay
            positive. Default: "abs".
        cooldown: observations to ignore after a cut. >= 0. Default: 0.
        warmup: observations to ignore after a raise (not a warm-up of the LR). >= 0. Default: 0.
        min_lr: lower bound, one number or one per group. Default: `min_lr_ratio` of the group's starting LR.
        max_lr: upper bound, one number or one per group. Default: `max_lr_ratio` times the group's starting LR.
        eps: a change of the LR no larger than this is not made: with `factor` 0.95, an LR below 1.9e-7 stays as it
            is. >= 0. Default: 1e-8.
        smooth: compare the mean of the last `window_size` losses instead of the last loss. Default: True, unlike
            upstream, whose losses are those of whole evaluations: with single losses of training steps noise makes
            nearly every observation one that is not better, and the LR only falls (`docs/choosing-a-schedule.md`).
        window_size: losses in that mean, >= 1; until there are so many, the mean is over those there are.
            Default: 50.
        reset_start: after this many cuts with every group at its lower bound, all starts over: the LR jumps back to
            the starting LR, and the best is forgotten. >= 0; 0 and 1 both start over on first reaching the bound.
            Write a large number, such as 10**9, to never start over. Default: 500.
        base: a step schedule, such as `Cosine(total_steps=10_000)`, whose factor multiplies the LR that the loss moves
            between the bounds. The LR then anneals when that schedule does, which GreedyLR alone does not promise.
            Default: None.
        hold: observations before the first one that may change the LR; they enter the window, and nothing else. >= 0.
            Default: None, which is the warm-up of `base`, the steps before its curve is first at its highest; 0
            without a base, as in transformers.
        compare: compare with the "best" so far, or with the "previous" observation. The paper's Algorithm 1 is
            `GreedyLR(compare="previous", patience=0, threshold=0, eps=0, smooth=False)`; the first observation, which
            it leaves open, counts as better. Default: "best".
        forget_every: after this many observations the best is forgotten, so that the next one counts as better, and
            counting restarts; LR and window stay. The paper's own runs of large models forget every 500 observations
            (`balak4/transformers`, branch dev, which calls it a reset). >= 0; 0 for never. Default: 0.
        min_lr_ratio: instead of `min_lr`, as a ratio of each group's starting LR, in [0, 1]. Default: 0.1.
        max_lr_ratio: instead of `max_lr`, as a ratio of each group's starting LR, >= 1. Default: 10.

    Raises:
        ValueError: an option is outside its range, or a bound is given twice (at construction); or a starting LR is
            outside [min_lr, max_lr], or all of them are zero (when the optimizer is constructed).
        TypeError: an option has the wrong type.
    """

    mode: str = "min"
    factor: float = 0.95
    patience: int = 10
    threshold: float = 1e-6
    threshold_mode: str = "abs"
    cooldown: int = 0
    warmup: int = 0
    min_lr: float | Sequence[float] | None = None
    max_lr: float | Sequence[float] | None = None
    eps: float = 1e-8
    smooth: bool = True
    window_size: int = 50
    reset_start: int = 500
    base: StepSchedule | None = None
    hold: int | None = None
    compare: str = "best"
    forget_every: int = 0
    min_lr_ratio: float | None = None
    max_lr_ratio: float | None = None

    kind: ClassVar[Kind] = Kind.GREEDY
    raises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        counts = [(name, 0) for name in ("patience", "cooldown", "warmup", "reset_start", "forget_every")]
        self._check([*counts, ("window_size", 1)])
        checks.choice(self, "compare", ("best", "previous"))
        for name in ("min_lr", "max_lr"):
            object.__setattr__(self, name, self._bound(name, getattr(self, name)))
        self._check_ratio("min_lr", "0 <= min_lr_ratio <= 1", 0.0, 1.0)
        self._check_ratio("max_lr", "max_lr_ratio >= 1", 1.0, math.inf)
        lows, highs = (bound if isinstance(bound, tuple) else (bound,) for bound in (self.min_lr, self.max_lr))
        groups = max(len(lows), len(highs))
        pairs = zip(*(bounds * groups if len(bounds) == 1 else bounds for bounds in (lows, highs)), strict=False)
        if any(low is not None and high is not None and low > high for low, high in pairs):
            checks.refuse(self, "min_lr", self.min_lr, f"at most max_lr={self.max_lr!r}", "swap them, or leave one out")

    def _check_ratio(self, bound: str, allowed: str, least: float, most: float) -> None:
        name = f"{bound}_ratio"
        ratio = getattr(self, name)
        if ratio is None:
            return
        if getattr(self, bound) is not None:
            checks.refuse(self, name, ratio, f"None beside {bound}", "drop one of them")
        if not least <= checks.number(self, name, allowed=allowed, example=least) <= most:
            checks.refuse(self, name, ratio, allowed, f"leave {name} out for its default")

    def bounds(self, lr: float, group: int) -> tuple[float, float]:
        """Return `(min_lr, max_lr)` of the group with that index and starting LR.

        Raises:
            ValueError: the bounds do not enclose the LR, or a per-group list is too short.
        """
        ratios = (
            DEFAULT_MIN_RATIO if self.min_lr_ratio is None else self.min_lr_ratio,
            DEFAULT_MAX_RATIO if self.max_lr_ratio is None else self.max_lr_ratio,
        )
        low, high = (self.bound_of(f"{side}_lr", group, r * lr) for side, r in zip(("min", "max"), ratios, strict=True))
        if not low <= lr <= high:
            derived = [
                f" ({ratio:g} times it)" if bound is None else ""
                for bound, ratio in zip((self.min_lr, self.max_lr), ratios, strict=True)
            ]
            raise ValueError(
                f"GreedyLR: expected a starting lr from min_lr={low!r}{derived[0]} to max_lr={high!r}{derived[1]}, got "
                f"{lr!r} in parameter group {group}; change that lr, or pass min_lr= and max_lr= around it"
            )
        return low, high

    @property
    def compare_with(self) -> CompareWith:
        """Return LAST for "previous"; for "best" transformers' rule, which compares only what is not waited through."""
        return CompareWith.LAST if self.compare == "previous" else CompareWith.BEST_WHILE_DECIDING
