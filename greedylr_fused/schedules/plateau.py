"""Configuration of ReduceOnPlateau, a learning rate that is cut when the loss stops improving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from greedylr_fused.schedules.loss_driven import CompareWith, Counting, Kind
from greedylr_fused.schedules.steps import StepSchedule


@dataclass(frozen=True, kw_only=True)
class ReduceOnPlateau(Counting):
    """A learning rate that is cut when the loss has not improved for a while, and never raised.

    Computes what `torch.optim.lr_scheduler.ReduceLROnPlateau` (PyTorch 2.13) does, with its option names, on the
    device. The unit of `patience` and `cooldown` is *observations*, one per optimizer step; torch's class is mostly
    stepped less often, so that its numbers need to be multiplied, and the losses of single steps to be smoothed. All
    groups share one decision. A non-finite loss counts as not better and never becomes the best (in torch, an infinite
    one can).

    Args:
        mode: "min" if a smaller loss is better, "max" if a larger one is. Default: "min".
        factor: a cut multiplies the LR by it. In (0, 1). Default: 0.1.
        patience: the LR is cut on observation number `patience + 1` in a row that was not better. >= 0. Default: 10.
        threshold: a loss is better only if it beats the best by more than this. >= 0, and < 1 if relative.
            Default: 1e-4.
        threshold_mode: "rel", a share of the best, or "abs", a margin in units of the loss. Default: "rel".
        cooldown: observations after a cut that do not count as not better. >= 0. Default: 0.
        min_lr: lower bound, one number or one per group. Default: 0.
        eps: a cut by no more than this is not made. >= 0. Default: 1e-8.
        smooth: compare the mean of the last `window_size` losses instead of the last loss; torch has no such option.
            Default: False.
        window_size: losses in that mean, >= 1. Default: 50.
        base: a step schedule that the LR follows, as in `GreedyLR`. Default: None.
        hold: observations before the first one that may cut, as in `GreedyLR`; their best counts. >= 0. Default: None,
            the warm-up of `base`.

    Raises:
        ValueError: an option is outside its range (at construction); or a starting LR is below `min_lr`, or all of them
            are zero (when the optimizer is constructed).
        TypeError: an option has the wrong type.
    """

    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float | Sequence[float] = 0.0
    eps: float = 1e-8
    smooth: bool = False
    window_size: int = 50
    base: StepSchedule | None = None
    hold: int | None = None

    kind: ClassVar[Kind] = Kind.PLATEAU
    raises: ClassVar[bool] = False
    warmup: ClassVar[int] = 0  # type: ignore[misc]
    forget_every: ClassVar[int] = 0  # type: ignore[misc]
    reset_start: ClassVar[int] = 2**53 - 1  # type: ignore[misc]  # never

    def __post_init__(self) -> None:
        self._check([("patience", 0), ("cooldown", 0), ("window_size", 1)])
        object.__setattr__(self, "min_lr", self._bound("min_lr", self.min_lr))

    def bounds(self, lr: float, group: int) -> tuple[float, float]:
        """Return `(min_lr, inf)` of the group with that index and starting LR.

        Raises:
            ValueError: the LR is below `min_lr`, or a per-group list is too short.
        """
        low = self.bound_of("min_lr", group, 0.0)
        if lr < low:
            raise ValueError(
                f"ReduceOnPlateau: expected a starting lr of min_lr={low!r} or more, got {lr!r} in parameter group "
                f"{group}; raise that lr, or lower min_lr"
            )
        return low, math.inf

    @property
    def compare_with(self) -> CompareWith:
        """Return BEST, which includes what is waited through."""
        return CompareWith.BEST
