"""The level searches once more, as a program that runs from window to window and asks for losses: what each rule means,
written apart from the package's machine, which goes from step to step. Its numbers have the same bits.
"""

import math
import statistics


class Run:
    """A whole run; `rows` has what is true before each step, and after the last: what is copied, phase, steps in the
    window, multiplier, level, level of the last trial, what a window is compared with, and the square of its error.

    Args:
        config: a Climb or an AdaLRS.
        losses: of all steps; None for one that was skipped for its gradients.
    """

    def __init__(self, config, losses):
        self.config, self.plan, self.climbs = config, config.windows, type(config).__name__ == "Climb"
        self.losses, self.rows, self.made = iter(losses), [], 0
        self.level = self.tried = config.start
        self.phase, self.copies, self.inside, self.kept = 0, 0, 0, (math.nan, math.nan)
        self.highest = -math.inf
        try:
            self.climb() if self.climbs else self.adalrs()
            self.phase = 3
            while True:
                self.next()
        except StopIteration:
            pass

    def next(self):
        """Note what is true before a step, and return its loss; of one skipped outside trials that of another."""
        while True:
            level = self.tried if self.phase == 1 else self.level
            if self.plan.anneal and self.phase in (1, 2):
                level *= min(1.0, (self.plan.length - self.inside) / self.plan.anneal)
            self.rows.append((self.copies, self.phase, self.inside, level, self.level, self.tried, *self.kept))
            self.copies = 0
            loss = next(self.losses)
            if loss is not None or self.phase == 1:
                break
        self.made += loss is not None
        return math.nan if loss is None else loss

    def wait(self):
        while self.made < self.plan.begin:
            loss = self.next()
            if abs(loss) < 1e100:
                self.highest = max(self.highest, loss)

    def window(self, phase):
        """Run one; returns its losses that count, or None of a trial that failed."""
        self.phase, self.inside, counted = phase, 0, []
        while self.inside < self.plan.length:
            loss = self.next()
            fine = abs(loss) < 1e100
            if phase == 1 and not (fine and (self.climbs or loss <= self.highest)):
                return None
            if fine:
                self.highest = max(self.highest, loss)
            if fine and self.inside >= self.plan.settle:
                counted.append(loss)
            self.inside += 1
        return counted

    def room(self, windows):
        return self.made + windows * self.plan.length <= self.plan.until

    def round(self):
        """A trial and its control; returns both as (mean, squared error of it), the trial's as None if it failed, and
        nothing where that is the end.
        """
        self.copies = 1
        trial, self.copies = self.window(1), 2
        if trial is None and self.tried > 1.0 + 1e-9:
            return None
        self.kept = (math.nan, math.nan) if trial is None else mean(trial)
        control = mean(self.window(2))
        return None if trial is None else self.kept, control

    def climb(self):
        self.wait()
        z, first = self.config.z, None  # the gain of a first trial that lost, and the square of its error
        while True:
            self.tried = self.level * self.config.factor
            if self.tried > self.config.levels[1] or not self.room(2):
                self.level = max(self.level, 1.0)
                return
            found = self.round()
            if found is None:
                return
            trial, control = found
            gain = math.nan if trial is None else control[0] - trial[0]
            if not (trial and gain > z * math.sqrt(control[1] + trial[1])):
                if self.tried > 1.0 + 1e-9:
                    return
                var = control[1] + min(control[1], trial[1]) if trial else math.nan
                if first is None and self.room(2):
                    first = (0.0, 0.0) if math.isnan(gain) else (gain, var)
                    continue
                before = first or (0.0, 0.0)
                both_lose = not gain >= 0.0 and before[0] <= 0.0
                if math.isnan(gain) or (both_lose and before[0] + gain < -(z * math.sqrt(before[1] + var))):
                    return
            self.level, first = self.tried, None

    def adalrs(self):
        self.wait()
        changes, rose, unknown = 1.0, 0, (math.nan, math.nan)
        while self.room(1):
            before, self.kept = self.kept, speed(self.window(2))
            rose = rose + 1 if self.kept[0] < 0 else 0
            higher = min(self.config.high, self.level * max(changes * self.config.up, 1.0))
            cut = rose >= 2
            if not cut and self.kept[0] < before[0] and higher > self.level and self.room(1):
                self.tried, self.copies = higher, 1
                trial = self.window(1)
                found = unknown if trial is None else speed(trial)
                error = self.config.z * math.sqrt((found[1] + self.kept[1]) / 2)
                rose = rose + 1 if found[0] < 0 else 0
                undone = trial is None or found[0] < self.kept[0] - error
                cut = undone or rose >= 2
                self.copies = 2 if undone else 0
                if not cut and found[0] > self.kept[0] + error:
                    self.level, self.kept, changes = self.tried, found, changes * self.config.decay
            if cut:
                self.level = max(self.config.low, self.level / max(changes * self.config.down, 1.0))
                self.kept, rose, changes = unknown, 0, changes * self.config.decay
            self.inside = 0


def mean(losses):
    """The mean of a window's losses, and the square of its standard error; in the package's order of operations."""
    if len(losses) < 2:
        return math.nan, math.nan
    ys = [loss - losses[0] for loss in losses]
    n, total = len(ys), added(ys)
    average = total / n
    assert math.isclose(losses[0] + average, statistics.fmean(losses), rel_tol=1e-9, abs_tol=1e-9)
    return losses[0] + average, max(0.0, added(y * y for y in ys) - total * average) / (n - 1) / n


def speed(losses):
    """Minus the slope of the least-squares line, and the square of its standard error."""
    if len(losses) < 3:
        return math.nan, math.nan
    ys = [loss - losses[0] for loss in losses]
    n, total = len(ys), added(ys)
    xx = n * (n * n - 1) / 12
    xy = added(x * y for x, y in enumerate(ys)) - (n - 1) / 2 * total
    yy = added(y * y for y in ys) - total * total / n
    slope = statistics.linear_regression(range(n), losses).slope
    assert math.isclose(xy / xx, slope, rel_tol=1e-6, abs_tol=1e-9 * max(map(abs, losses)))
    return -(xy / xx), max(0.0, yy - xy * xy / xx) / (n - 2) / xx


def added(values):
    total = 0.0  # in turn: sum() is compensated from Python 3.12 on
    for value in values:
        total += value
    return total
