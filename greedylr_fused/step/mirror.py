"""The host's view of the control vector, which never waits, and the listeners that are told of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from greedylr_fused.control import SLOT, STATE_BEGIN, Control
from greedylr_fused.schedules import Phase
from greedylr_fused.step.arrivals import arrivals


@dataclass(frozen=True, eq=False)
class Metrics:
    """One snapshot of an optimizer's device state. Two are equal if all their numbers are, or are both NaN."""

    step: int
    """Committed steps."""
    lr: tuple[float, ...]
    """Learning rate that the next step will use, one per parameter group."""
    loss: float
    """Loss of the last step (weighted mean of what was observed); NaN before the first."""
    smoothed_loss: float
    """Value compared with `best`: the loss, or with `smooth` its mean over the window; NaN before the first."""
    best: float
    """Best compared value so far; infinite before the first."""
    grad_norm: float
    """2-norm of all gradients before clipping, after unscaling; NaN where it was not needed."""
    grad_norm_l1: float
    """1-norm of the same gradients; NaN unless a `Recorder(grad_norms=True)` has each step measure it."""
    skipped: int
    """Steps skipped because of a non-finite gradient, or as spikes."""
    skipped_spikes: int = 0
    """Of these the steps skipped as spikes (`SkipSpikes`)."""
    tuner_scale: float = math.nan
    """S, by which a tuner scales the sum of all updates; NaN without one."""
    phase: str | None = None
    """Of a level search: "wait", "trial", "control" (a window at its level) or "frozen" (it is over); None without."""
    level: float = math.nan
    """Its level outside trials, as a ratio of the starting LR; NaN without one."""

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, Metrics) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Return one flat dictionary of floats, as loggers take it.

        Values that were not measured are left out: a NaN norm, S or `smoothed_loss`, an infinite `best`. A NaN `loss`
        stays, so that it is seen. The LR is "lr", or "lr/0", "lr/1" and so on with several parameter groups. The phase
        is its number, 0 to 3.

        Args:
            prefix: of every name, such as "optimizer/".
        """
        rates = {"lr": self.lr[0]} if len(self.lr) == 1 else {f"lr/{group}": lr for group, lr in enumerate(self.lr)}
        skips = {"skipped": float(self.skipped), "skipped_spikes": float(self.skipped_spikes)}
        found = {"loss": self.loss} | rates | skips
        for name in ("smoothed_loss", "grad_norm", "grad_norm_l1", "tuner_scale"):
            if not math.isnan(value := getattr(self, name)):
                found[name] = value
        if math.isfinite(self.best):
            found["best"] = self.best
        if self.phase is not None:
            found |= {"level": self.level, "phase": float(Phase[self.phase.upper()])}
        return {prefix + name: value for name, value in found.items()}

    @classmethod
    def of(cls, state: Sequence[float], lr: Sequence[float]) -> Metrics:
        """Make a snapshot of the slots from `STATE_BEGIN` on, and the LRs of all groups."""

        def value(name: str) -> float:
            return state[SLOT[name] - STATE_BEGIN]

        scale, level = value("grad_scale"), value("search_level")
        return cls(
            step=int(value("step")),
            lr=tuple(lr),
            loss=value("loss"),
            smoothed_loss=value("smoothed"),
            best=value("best"),
            grad_norm=value("grad_norm"),
            grad_norm_l1=value("grad_abs_sum") / scale if scale else math.nan,  # a loss scale may come down to 0
            skipped=int(value("skipped")),
            skipped_spikes=int(value("spikes")),
            tuner_scale=value("tuner_scale"),
            phase=None if math.isnan(level) else Phase(int(value("phase"))).name.lower(),
            level=level,
        )


class Mirror:
    """The latest snapshot of a control vector that has arrived on the host.

    Args:
        control: what to mirror; a rebuilt control needs a new mirror.
    """

    def __init__(self, control: Control) -> None:
        self._arrivals = arrivals(control)

    @property
    def metrics(self) -> Metrics:
        return Metrics.of(self._arrivals.shown[0].tolist(), self.lr)

    @property
    def lr(self) -> list[float]:
        """The same as `metrics.lr`, in half the time."""
        lrs: list[float] = self._arrivals.shown[1].tolist()
        return lrs

    @property
    def counts(self) -> tuple[float, float]:
        """The same as `metrics.step` and `metrics.skipped`, in a fraction of the time."""
        step, skipped = self._arrivals.shown[0][:2].tolist()
        return step, skipped

    def slot(self, name: str) -> float:
        """Return one slot from "step" on, as of this snapshot."""
        at = SLOT[name] - STATE_BEGIN
        value: list[float] = self._arrivals.shown[0][at : at + 1].tolist()
        return value[0]

    def update(self) -> bool:
        """Take over a snapshot that has arrived, and ask for the next; tell whether one arrived."""
        return self._arrivals.update()


class Listener(Protocol):
    """Interface of the entries in `_listeners` of FusedAdamW and DeviceSchedule. No method may wait for the device, or
    raise because of what it finds.
    """

    def after_step(self) -> None:
        """Act after a step was enqueued; what this enqueues runs after it, and a captured graph repeats both."""

    def after_replay(self) -> None:
        """Act after a graph was replayed, with what `after_step` enqueued in its capture. The host has some time."""

    def after_restart(self) -> None:
        """Act after a restart: the control vector may lie in other memory, and its step count may have been loaded."""
