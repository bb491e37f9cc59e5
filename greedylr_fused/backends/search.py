"""The level searches in plain torch operations (L1-L9): every branch a mask, every outcome computed and one kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greedylr_fused.control import SEARCH_STATE, SEARCH_WINDOWS, SLOT
from greedylr_fused.schedules import HUGE_LOSS, ROUNDING, Backup, Event, Kind, Phase

_STATE = (*SEARCH_STATE, "backup", "event")
_OPTIONS = (
    *SEARCH_WINDOWS,
    *("kind", "search_begin", "search_until", "cut_by", "fade", "lowest", "highest", "errors", "step"),
)


class State:
    """The slots of a search, as attributes."""

    def __init__(self, vector: Tensor) -> None:
        for name in (*_STATE, *_OPTIONS):
            setattr(self, name, vector[SLOT[name]].clone())

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(name)

    def put(self, where: Tensor, **values: Tensor | float) -> None:
        """Give these slots these values where a mask is set."""
        for name, value in values.items():
            setattr(self, name, torch.where(where, value, getattr(self, name)))

    def open(self, where: Tensor, phase: Tensor | float) -> None:
        zeros = ("window_step", "search_losses", "first_loss", "sum_y", "sum_yy", "sum_xy")
        self.put(where, phase=phase, **dict.fromkeys(zeros, 0.0))

    def forget(self, where: Tensor) -> None:
        self.put(where, kept=math.nan, kept_var=math.nan)

    def is_late(self, windows: float) -> Tensor:
        """Return whether so many windows would not end in time."""
        return self.step + windows * self.window_size > self.search_until

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the square of its standard error."""
        n = self.search_losses
        mean = self.sum_y / n
        var = _at_least(0.0, self.sum_yy - self.sum_y * mean) / (n - 1.0) / n
        few = n < 2.0
        return torch.where(few, math.nan, self.first_loss + mean), torch.where(few, math.nan, var)

    def speed(self) -> tuple[Tensor, Tensor]:
        """Return minus the slope of the least-squares line and the square of its standard error."""
        n = self.search_losses
        xx = n * (n * n - 1.0) / 12.0
        xy = self.sum_xy - (n - 1.0) / 2.0 * self.sum_y
        yy = self.sum_yy - self.sum_y * self.sum_y / n
        var = _at_least(0.0, yy - xy * xy / xx) / (n - 2.0) / xx
        few = n < 3.0
        return torch.where(few, math.nan, -(xy / xx)), torch.where(few, math.nan, var)


def _at_least(low: Tensor | float, x: Tensor | float) -> Tensor:
    return torch.where(x > low, x, low)  # type: ignore[arg-type]


def search(vector: Tensor, initial_lr: Tensor, level: Tensor, x: Tensor, active: Tensor) -> None:
    """Take the loss of a step, after it.

    Args:
        vector: the control vector, with the slots `event` and `backup` at 0.
        initial_lr: [G] view of it.
        level: [G] view of it.
        x: the loss, NaN for a step that was skipped in a trial.
        active: whether there is one.
    """
    s = State(vector)
    level_before, tried = s.search_level, s.phase == Phase.TRIAL
    was_frozen = s.phase == Phase.FROZEN
    _decide(s, x, active & ~was_frozen, tried)
    s.put(active, multiplier=_next_multiplier(s))
    s.put(active, event=_told(s, level_before, was_frozen, tried))
    for name in _STATE:
        vector[SLOT[name]].copy_(getattr(s, name))
    level.copy_(torch.where(active, initial_lr * s.multiplier, level))


def _decide(s: State, x: Tensor, live: Tensor, tried: Tensor) -> None:
    finite, climbs = torch.abs(x) < HUGE_LOSS, s.kind == Kind.CLIMB  # L1
    failed = live & tried & ~(finite & (climbs | (x <= s.worst_loss)))  # L2
    s.put(failed, backup=float(Backup.PUT_BACK))
    live = live & ~failed
    s.put(live & finite & ~climbs, worst_loss=_at_least(s.worst_loss, x))  # L3
    waits = live & (s.phase == Phase.WAIT)  # L4
    begins = waits & (s.step >= s.search_begin)
    inside = live & ~waits
    _count(s, x, inside & finite & (s.window_step >= s.settle))  # L5
    s.put(inside, window_step=s.window_step + 1.0)
    full = inside & (s.window_step >= s.window_size)
    back, verdict = full & climbs & tried, full & climbs & ~tried  # L6
    _climb(s, failed & climbs, back, verdict, begins & climbs)
    slope, tried = full & ~climbs & ~tried, full & ~climbs & tried  # L7
    _adalrs(s, failed & ~climbs, slope, tried, begins & ~climbs)


def _count(s: State, x: Tensor, counts: Tensor) -> None:
    s.put(counts & (s.search_losses == 0.0), first_loss=x)
    y = x - s.first_loss
    s.put(
        counts,
        sum_y=s.sum_y + y,
        sum_yy=s.sum_yy + y * y,
        sum_xy=s.sum_xy + s.search_losses * y,
        search_losses=s.search_losses + 1.0,
    )


def _climb(s: State, failed: Tensor, back: Tensor, verdict: Tensor, begins: Tensor) -> None:
    """Put a trial back, compare the control's losses with its, and try the next level."""
    mean, var = s.mean()
    gain, known = mean - s.kept, s.trial_level <= 1.0 + ROUNDING
    wins = gain > s.errors * torch.sqrt(var + s.kept_var)
    own_var = var + torch.where(s.kept_var < var, s.kept_var, var)  # a trial that explodes is no excuse for itself
    counts = ~torch.isnan(gain)  # of a trial that failed the second one knows nothing
    one_wins = (gain >= 0.0) | (s.gain > 0.0)
    stands = counts & (one_wins | (s.gain + gain >= -(s.errors * torch.sqrt(s.gain_var + own_var))))
    once_more = verdict & known & ~wins & (s.again == 0.0) & ~s.is_late(2.0)
    taken = verdict & ~once_more & (wins | (known & stands))
    ends, failed = failed & ~known, failed & known  # above the starting LR a trial must win
    s.put(ends, phase=float(Phase.FROZEN))
    s.forget(failed)
    s.put(back, kept=mean, kept_var=var, backup=float(Backup.PUT_BACK))
    s.put(taken, search_level=s.trial_level, again=0.0, gain=0.0, gain_var=0.0)
    s.put(once_more, again=1.0, gain=torch.where(counts, gain, 0.0), gain_var=torch.where(counts, own_var, 0.0))
    tries = begins | taken | once_more
    s.put(tries, trial_level=s.search_level * s.raise_by)
    over = tries & ((s.trial_level > s.highest) | s.is_late(2.0))
    s.put(over & (s.again == 0.0), search_level=_at_least(1.0, s.search_level))
    s.put(over | (verdict & ~taken & ~once_more), phase=float(Phase.FROZEN))
    s.put(tries & ~over, backup=float(Backup.TAKE))
    s.open(tries & ~over, float(Phase.TRIAL))
    s.open(failed | back, float(Phase.CONTROL))


def _adalrs(s: State, failed: Tensor, slope: Tensor, tried: Tensor, begins: Tensor) -> None:
    """Compare the speed of a window with that of the one before, keep a trial or put it back, and go on measuring."""
    speed, var = s.speed()
    error = s.errors * torch.sqrt((var + s.kept_var) / 2.0)
    late = s.is_late(1.0)
    slower, faster = speed < s.kept, tried & (speed > s.kept + error)
    worse = tried & (speed < s.kept - error)
    s.put(slope | tried, rising=torch.where(speed < 0.0, s.rising + 1.0, 0.0))
    s.put(slope, kept=speed, kept_var=var)
    rises = (slope | tried) & (s.rising >= 2.0)
    raised = s.search_level * _at_least(1.0, s.faded * s.raise_by)
    raised = torch.where(raised < s.highest, raised, s.highest)
    tries = slope & ~rises & slower & (raised > s.search_level) & ~late
    s.put(tries, trial_level=raised, backup=float(Backup.TAKE))
    faster = faster & ~rises
    s.put(faster, search_level=s.trial_level, kept=speed, kept_var=var, faded=s.faded * s.fade)
    s.put(worse, backup=float(Backup.PUT_BACK))
    cuts = rises | worse | failed
    lowered = s.search_level / _at_least(1.0, s.faded * s.cut_by)
    s.put(cuts, search_level=_at_least(s.lowest, lowered), faded=s.faded * s.fade, rising=0.0)
    s.forget(cuts)
    measures = begins | cuts | tried | (slope & ~tries)
    s.open(tries, float(Phase.TRIAL))
    s.open(measures, torch.where(late, float(Phase.FROZEN), float(Phase.CONTROL)).to(late.device, torch.float64))


def _next_multiplier(s: State) -> Tensor:
    tries = s.phase == Phase.TRIAL  # L8
    level = torch.where(tries, s.trial_level, s.search_level)
    left = (s.window_size - s.window_step) / s.anneal
    anneals = (s.anneal != 0.0) & (tries | (s.phase == Phase.CONTROL))
    return torch.where(anneals, level * torch.where(left < 1.0, left, 1.0), level)


def _told(s: State, level_before: Tensor, was_frozen: Tensor, tried: Tensor) -> Tensor:
    ended = tried & (s.phase != Phase.TRIAL)  # L9
    event = torch.where(ended, float(Event.BACK), torch.zeros_like(level_before))
    event = torch.where(s.backup == Backup.TAKE, float(Event.TRY), event)
    event = torch.where((s.phase == Phase.FROZEN) & ~was_frozen, float(Event.FREEZE), event)
    event = torch.where(s.search_level < level_before, float(Event.CUT), event)
    return torch.where(s.search_level > level_before, float(Event.RAISE), event)
