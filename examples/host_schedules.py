"""The baseline's schedules: on the host, torch's and transformers' own, as one uses them today."""

from __future__ import annotations

import math
from typing import Any

from greedylr_fused import WSD, Cosine, GreedyLR, Linear, ReduceOnPlateau
from greedylr_fused.schedules import Constant, LossSpec
from greedylr_fused.schedules.loss_spec import Window
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from errors import UsageError


class HostGreedyLR:
    """GreedyLR in plain floats, which gives the same bits as `transformers.optimization.GreedyLR`."""

    reads_loss = True

    def __init__(self, schedule: GreedyLR, adamw: AdamW) -> None:
        self._adamw = adamw
        self._spec = LossSpec(schedule, [group["lr"] for group in adamw.param_groups])

    def step(self, loss: float) -> None:
        """Let the loss decide, and write the LR."""
        for group, lr in zip(self._adamw.param_groups, self._spec.observe(loss), strict=True):
            group["lr"] = lr

    @property
    def smoothed(self) -> float:
        window = self._spec.window
        return window.sum / len(window) if window else math.nan

    @property
    def best(self) -> float:
        return self._spec.best

    def state_dict(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self._spec).items() if name not in ("config", "window", "event")}
        return state | _saved(self._spec.window)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self._spec).update(_restored(self._spec.window, state))


class HostPlateau:
    """torch's ReduceLROnPlateau, which compares what it is given: here the mean of the last losses."""

    reads_loss = True

    def __init__(self, schedule: ReduceOnPlateau, adamw: AdamW) -> None:
        names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
        self._torch = ReduceLROnPlateau(adamw, **{name: getattr(schedule, name) for name in names})
        self._window = Window(schedule.window_size)
        self.smoothed = math.nan

    def step(self, loss: float) -> None:
        """Let the loss decide, and write the LR."""
        if math.isfinite(loss):
            self.smoothed = loss = self._window.mean_with(loss)
        self._torch.step(loss)

    @property
    def best(self) -> float:
        return float(self._torch.best)

    def state_dict(self) -> dict[str, Any]:
        return {"torch": self._torch.state_dict(), "smoothed": self.smoothed} | _saved(self._window)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kept = _restored(self._window, state)
        self._torch.load_state_dict(kept["torch"])
        self.smoothed = kept["smoothed"]


class HostSteps:
    """A LambdaLR of transformers; the loss is nothing to it."""

    reads_loss = False
    smoothed, best = math.nan, math.inf

    def __init__(self, schedule: Constant | Linear | Cosine | WSD, adamw: AdamW) -> None:
        try:
            from transformers import optimization
        except ImportError:
            raise UsageError(
                f"{type(schedule).__name__}: the baseline takes transformers' scheduler, and transformers is not "
                "installed; pip install transformers, or leave out --compare and --optimizer torch"
            ) from None
        warmup = schedule.warmup_steps
        self._scheduler: LambdaLR
        if isinstance(schedule, Constant):
            self._scheduler = optimization.get_constant_schedule_with_warmup(adamw, warmup)
        elif isinstance(schedule, Linear):
            self._scheduler = optimization.get_linear_schedule_with_warmup(adamw, warmup, schedule.total_steps)
        elif isinstance(schedule, Cosine):
            self._scheduler = optimization.get_cosine_with_min_lr_schedule_with_warmup(
                adamw, warmup, schedule.total_steps, min_lr_rate=schedule.min_lr_ratio
            )
        else:
            self._scheduler = optimization.get_wsd_schedule(
                adamw, warmup, schedule.decay_steps, schedule.total_steps, min_lr_ratio=schedule.min_lr_ratio
            )

    def step(self, loss: float) -> None:
        """Write the LR of the next step."""
        self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The LR is that of the curve as it is now: the run may have become longer."""
        scheduler = self._scheduler
        scheduler.load_state_dict(state)
        groups = scheduler.optimizer.param_groups
        for group, lr, share in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = lr * share(scheduler.last_epoch)


def host_schedule(schedule: Any, adamw: AdamW) -> HostGreedyLR | HostPlateau | HostSteps:
    """The schedule on the host that does what this one of the library does."""
    if isinstance(schedule, GreedyLR):
        return HostGreedyLR(schedule, adamw)
    return HostPlateau(schedule, adamw) if isinstance(schedule, ReduceOnPlateau) else HostSteps(schedule, adamw)


def _saved(window: Window) -> dict[str, Any]:
    return {"window": list(window), "window_sum": window.sum}


def _restored(window: Window, state: dict[str, Any]) -> dict[str, Any]:
    """Fill the window; returns what else there is."""
    rest = dict(state)
    window.clear()
    window.extend(rest.pop("window"))
    window.sum = rest.pop("window_sum")
    return rest
