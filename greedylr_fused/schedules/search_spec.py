"""The level searches in plain Python floats: every device form is tested against them, bit for bit.

Steps are tagged L1..L9; `csrc/core/search.h`, the Triton kernel and the reference backend carry the same tags. The
order of operations is part of it, as is that of the arguments of `min` and `max`: every comparison with NaN is false.
"""

from __future__ import annotations

import math

from greedylr_fused.schedules.loss_driven import Event, Kind
from greedylr_fused.schedules.search import HUGE_LOSS, ROUNDING, Backup, LevelSearch, Phase
from greedylr_fused.schedules.spikes import Skip


class Sums:
    """Sums over the losses y that count in one window, each less the first of them, and numbers x of them, from 0."""

    def __init__(self) -> None:
        self.n, self.first, self.y, self.yy, self.xy = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, loss: float) -> None:
        if self.n == 0:
            self.first = loss
        y = loss - self.first
        self.y += y
        self.yy += y * y
        self.xy += self.n * y
        self.n += 1

    def mean(self) -> tuple[float, float]:
        """Return the mean loss and the square of its standard error, both NaN of fewer than two losses."""
        if self.n < 2:
            return math.nan, math.nan
        mean = self.y / self.n
        return self.first + mean, max(0.0, self.yy - self.y * mean) / (self.n - 1) / self.n

    def speed(self) -> tuple[float, float]:
        """Return minus the slope of the least-squares line, in units of the loss per observation, and the square of its
        standard error, both NaN of fewer than three losses.
        """
        if self.n < 3:
            return math.nan, math.nan
        xx = self.n * (self.n * self.n - 1) / 12.0
        xy = self.xy - (self.n - 1) / 2.0 * self.y
        yy = self.yy - self.y * self.y / self.n
        return -(xy / xx), max(0.0, yy - xy * xy / xx) / (self.n - 2) / xx


class SearchSpec:
    """A level search on the host, over plain floats.

    Args:
        config: the options.

    Attributes:
        multiplier: what the starting LR and the curve of `base` are multiplied by for the next step.
        backup: what is copied after the last step, before the next.
        event: what the last step decided.
        level: of the LR outside trials; `trial_level`: in the open trial, or the last.
        phase: a Phase.
    """

    def __init__(self, config: LevelSearch) -> None:
        self.config, self.windows, self.climbs = config, config.windows, config.kind is Kind.CLIMB
        self.options = {"raise_by": 1.0, "cut_by": 1.0, "fade": 1.0} | config.slots()
        self.level = self.trial_level = self.multiplier = config.start
        self.phase, self.step, self.window_step, self.sums = Phase.WAIT, 0, 0, Sums()
        self.kept, self.kept_var = math.nan, math.nan
        self.again, self.gain, self.gain_var = 0, 0.0, 0.0
        self.rising, self.faded, self.worst = 0, 1.0, -math.inf
        self.backup, self.event = Backup.NONE, Event.NONE

    def observe(self, loss: float) -> float:
        """Take the loss of one step; return the multiplier of the next."""
        self.step += 1
        return self._take(float(loss))

    def skip(self, why: Skip = Skip.NONFINITE) -> float:
        """Take a step that was skipped: for its gradients, which counts only against a trial, as a loss that is not
        finite, or as a spike, which counts for nothing: a run at the trial's level would skip it, too.
        """
        if self.phase is Phase.TRIAL and why is Skip.NONFINITE:
            return self._take(math.nan)
        self.backup, self.event = Backup.NONE, Event.NONE
        return self.multiplier

    def resume(self) -> float:
        """Go on from a checkpoint, which has no backup: an open trial has no verdict, and the search goes on at its
        level, at once with the same trial (Climb) or with a window (AdaLRS).
        """
        if self.phase is Phase.TRIAL:
            self._open(Phase.WAIT)
            self.kept = self.kept_var = math.nan
            self.multiplier = self.level
        return self.multiplier

    def _take(self, loss: float) -> float:
        level, phase = self.level, self.phase
        self.backup = Backup.NONE
        if phase is not Phase.FROZEN:
            self._decide(loss)
        self.multiplier = self._next_multiplier()
        self.event = self._told(level, phase)
        return self.multiplier

    def _decide(self, loss: float) -> None:
        finite = abs(loss) < HUGE_LOSS  # L1
        if self.phase is Phase.TRIAL and not (finite and (self.climbs or loss <= self.worst)):  # L2: it has failed
            self._give_up()
            return
        if finite and not self.climbs:  # L3
            self.worst = max(self.worst, loss)
        if self.phase is Phase.WAIT:  # L4
            if self.step >= self.windows.begin:
                self._begin()
            return
        if finite and self.window_step >= self.windows.settle:  # L5
            self.sums.add(loss)
        self.window_step += 1
        if self.window_step >= self.windows.length:
            self._conclude()

    def _begin(self) -> None:
        if self.climbs:
            self._try_higher()
        else:
            self._measure()

    def _give_up(self) -> None:
        if not self.climbs:
            self._cut()
        elif self.trial_level > 1.0 + ROUNDING:
            self.phase = Phase.FROZEN
        else:
            self.kept = self.kept_var = math.nan
            self._open(Phase.CONTROL)
        self.backup = Backup.PUT_BACK

    def _conclude(self) -> None:
        tried = self.phase is Phase.TRIAL
        if self.climbs and tried:  # L6
            self.kept, self.kept_var = self.sums.mean()
            self.backup = Backup.PUT_BACK
            self._open(Phase.CONTROL)
        elif self.climbs:
            self._judge_mean(*self.sums.mean())
        elif tried:  # L7
            self._judge_trial(*self.sums.speed())
        else:
            self._judge_speed(*self.sums.speed())

    def _open(self, phase: Phase) -> None:
        self.phase, self.window_step, self.sums = phase, 0, Sums()

    def _judge_mean(self, mean: float, var: float) -> None:
        """Compare the control's losses with those of the trial before it. A trial that wins is taken. Up to the
        starting LR another one is, too, unless a second one loses with it, or there is no time for that and it loses.
        """
        gain, z, failed = mean - self.kept, self.config.z, math.isnan(mean - self.kept)
        taken = gain > z * math.sqrt(var + self.kept_var)
        if self.trial_level <= 1.0 + ROUNDING and not taken:
            var += self.kept_var if self.kept_var < var else var  # a trial that explodes is no excuse for itself
            if not self.again and not self._late(2):  # of a trial that failed the second one knows nothing
                self.again, self.gain, self.gain_var = 1, 0.0 if failed else gain, 0.0 if failed else var
                self._try_higher()
                return
            one_wins = gain >= 0.0 or self.gain > 0.0
            taken = not failed and (one_wins or self.gain + gain >= -(z * math.sqrt(self.gain_var + var)))
        if taken:
            self.level, self.again, self.gain, self.gain_var = self.trial_level, 0, 0.0, 0.0
            self._try_higher()
        else:
            self.phase = Phase.FROZEN

    def _try_higher(self) -> None:
        self.trial_level = self.level * self.options["raise_by"]
        if self._late(2) or self.trial_level > self.config.levels[1]:
            if not self.again:  # out of time below the starting LR, against which no trial has spoken
                self.level = max(self.level, 1.0)
            self.phase = Phase.FROZEN
        else:
            self.backup = Backup.TAKE
            self._open(Phase.TRIAL)

    def _measure(self) -> None:
        """Open a window at the level, or end the search where none ends in time."""
        self._open(Phase.FROZEN if self._late(1) else Phase.CONTROL)

    def _late(self, windows: int) -> bool:
        """Return whether so many windows would not end in time."""
        return self.step + windows * self.windows.length > self.windows.until

    def _judge_speed(self, speed: float, var: float) -> None:
        """Compare the speed with that of the window before."""
        self.rising = self.rising + 1 if speed < 0.0 else 0
        slower = speed < self.kept
        self.kept, self.kept_var = speed, var
        raised = min(self.config.levels[1], self.level * max(self.faded * self.options["raise_by"], 1.0))
        if self.rising >= 2:
            self._cut()
        elif slower and raised > self.level and not self._late(1):
            self.trial_level = raised
            self.backup = Backup.TAKE
            self._open(Phase.TRIAL)
        else:
            self._measure()

    def _judge_trial(self, speed: float, var: float) -> None:
        """Keep the trial's level, cut, or neither."""
        error = self.config.z * math.sqrt((var + self.kept_var) / 2.0)
        self.rising = self.rising + 1 if speed < 0.0 else 0
        if speed < self.kept - error:
            self.backup = Backup.PUT_BACK
            self._cut()
        elif self.rising >= 2:
            self._cut()
        elif speed > self.kept + error:
            self.level, self.kept, self.kept_var = self.trial_level, speed, var
            self.faded *= self.options["fade"]
            self._measure()
        else:
            self._measure()

    def _cut(self) -> None:
        self.level = max(self.config.levels[0], self.level / max(self.faded * self.options["cut_by"], 1.0))
        self.faded *= self.options["fade"]
        self.rising, self.kept, self.kept_var = 0, math.nan, math.nan
        self._measure()

    def _next_multiplier(self) -> float:
        level = self.trial_level if self.phase is Phase.TRIAL else self.level  # L8
        fall = self.windows.anneal
        if fall and self.phase in (Phase.TRIAL, Phase.CONTROL):
            return level * min(1.0, (self.windows.length - self.window_step) / fall)
        return level

    def _told(self, level: float, phase: Phase) -> Event:
        """Return what changed since the level and the phase of the step before: the first of these that is true."""
        if self.level != level:  # L9
            return Event.RAISE if self.level > level else Event.CUT
        if self.phase is Phase.FROZEN and phase is not Phase.FROZEN:
            return Event.FREEZE
        if self.backup is Backup.TAKE:
            return Event.TRY
        return Event.BACK if phase is Phase.TRIAL and self.phase is not Phase.TRIAL else Event.NONE
