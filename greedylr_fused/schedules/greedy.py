"""Configuration of GreedyLR, a learning rate that the loss raises and cuts.

Source: Subramanian & Kumar, "GreedyLR: A Novel Adaptive Learning Rate Scheduler" (arXiv 2512.14527), in the form of
`transformers.optimization.GreedyLR` 5.17, whose option names are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Bounds when `min_lr` / `max_lr` are left out, as ratios of each group's starting LR. The floor of one tenth is the
#: paper's (its appendix on small models). The ceiling is ours: upstream's absolute 1.0 is no bound for AdamW.
DEFAULT_MIN_RATIO = 0.1
DEFAULT_MAX_RATIO = 10.0


def _fail(name: str, got: object, allowed: str, remedy: str) -> None:
    raise ValueError(f"GreedyLR {name}: got {got!r}, allowed is {allowed}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class GreedyLR:
    """Raise the learning rate while the loss improves, cut it while it does not.

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
        min_lr: lower bound, one number or one per group. Default: 0.1 of the group's starting LR.
        max_lr: upper bound, one number or one per group. Default: 10 times the group's starting LR.
        eps: a change of the LR no larger than this is not made: with `factor` 0.95, an LR below 1.9e-7 stays as it
            is. >= 0. Default: 1e-8.
        smooth: compare the mean of the last `window_size` losses instead of the last loss. Default: False.
        window_size: losses in that mean, >= 1; until there are so many, the mean is over those there are.
            Default: 50.
        reset_start: after this many cuts with every group at its lower bound, all starts over: the LR jumps back to
            the starting LR, and the best is forgotten. >= 0; 0 and 1 both start over on first reaching the bound.
            Write a large number, such as 10**9, to never start over. Default: 500.

    Raises:
        ValueError: an option is outside its range (at construction); or a starting LR is outside [min_lr, max_lr],
            or all of them are zero (when the optimizer is constructed).
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
    smooth: bool = False
    window_size: int = 50
    reset_start: int = 500

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            _fail("mode", self.mode, '"min" or "max"', 'write mode="min" for a loss')
        if self.threshold_mode not in ("abs", "rel"):
            _fail("threshold_mode", self.threshold_mode, '"abs" or "rel"', 'write threshold_mode="abs"')
        for name in ("factor", "threshold", "eps"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not 0.0 < self.factor < 1.0:
            _fail("factor", self.factor, "a number between 0 and 1, both excluded", "write factor=0.95")
        if self.threshold < 0 or (self.threshold_mode == "rel" and self.threshold >= 1):
            _fail("threshold", self.threshold, ">= 0 (and < 1 if relative)", "write threshold=1e-6")
        if self.eps < 0:
            _fail("eps", self.eps, ">= 0", "write eps=1e-8, or eps=0 to make every change")
        for name, least in (("patience", 0), ("cooldown", 0), ("warmup", 0), ("window_size", 1), ("reset_start", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                nearest = max(least, round(value)) if isinstance(value, float) and math.isfinite(value) else least
                raise TypeError(f"GreedyLR {name}: got {value!r}, allowed is an int; write {name}={nearest}")
            if not least <= value < 2**53:
                _fail(name, value, f"a whole number from {least} to 2**53 - 1", f"write {name}={least} or more")
        if not isinstance(self.smooth, bool):
            raise TypeError(f"GreedyLR smooth: got {self.smooth!r}, allowed is True or False; write smooth=True")
        for name in ("min_lr", "max_lr"):
            object.__setattr__(self, name, _bound(name, getattr(self, name)))
        lows, highs = (bound if isinstance(bound, tuple) else (bound,) for bound in (self.min_lr, self.max_lr))
        groups = max(len(lows), len(highs))
        pairs = zip(*(bounds * groups if len(bounds) == 1 else bounds for bounds in (lows, highs)), strict=False)
        if any(low is not None and high is not None and low > high for low, high in pairs):
            _fail("min_lr", self.min_lr, f"at most max_lr={self.max_lr!r}", "swap them, or leave one out")

    def bounds(self, lr: float, group: int) -> tuple[float, float]:
        """`(min_lr, max_lr)` of the group with that index and starting LR.

        Raises:
            ValueError: the bounds do not enclose the LR, or a per-group list is too short.
        """
        low = self._bound_of("min_lr", group, DEFAULT_MIN_RATIO * lr)
        high = self._bound_of("max_lr", group, DEFAULT_MAX_RATIO * lr)
        if not low <= lr <= high:
            derived = [
                f" ({ratio:g} times it)" if bound is None else ""
                for bound, ratio in ((self.min_lr, DEFAULT_MIN_RATIO), (self.max_lr, DEFAULT_MAX_RATIO))
            ]
            raise ValueError(
                f"GreedyLR: got a starting lr of {lr!r} in parameter group {group}, allowed is from min_lr={low!r}"
                f"{derived[0]} to max_lr={high!r}{derived[1]}; change that lr, or pass min_lr= and max_lr= around it"
            )
        return low, high

    def check_groups(self, n_groups: int) -> None:
        """Refuse a per-group list of the wrong length."""
        for name in ("min_lr", "max_lr"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != n_groups:
                raise ValueError(
                    f"GreedyLR {name}: got {len(value)} values, allowed is one number or one per parameter group "
                    f"({n_groups}); pass a single number to use it for every group"
                )

    def slots(self) -> dict[str, float]:
        """The values of the control vector that this configuration fixes."""
        return {
            "mode_max": float(self.mode == "max"),
            "threshold_rel": float(self.threshold_mode == "rel"),
            "smooth": float(self.smooth),
            "best": -math.inf if self.mode == "max" else math.inf,
            "resets_left": float(self.reset_start),
            **{
                name: float(getattr(self, name))
                for name in (
                    *("factor", "patience", "threshold", "cooldown", "warmup"),
                    *("eps", "window_size", "reset_start"),
                )
            },
        }

    def _bound_of(self, name: str, group: int, default: float) -> float:
        value: Any = getattr(self, name)
        if isinstance(value, tuple):
            if group >= len(value):
                self.check_groups(group + 1)
            value = value[group]
        return default if value is None else value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"GreedyLR {name}: got {value!r}, allowed is a number; write e.g. {name}=0.1")
    if not math.isfinite(value):
        _fail(name, value, "a finite number", f"leave {name} out for its default")
    return float(value)


def _bound(name: str, value: Any) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return tuple(_bound(name, item) for item in value)  # type: ignore[misc]
    number = _number(name, value)
    if number < 0:
        _fail(name, number, "a learning rate >= 0", f"leave {name} out to make it a ratio of the starting LR")
    return number
