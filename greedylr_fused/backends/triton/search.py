"""The level searches in Triton (L1-L9): what is tried, kept and put back, as slots of the control vector.

One thread stores, as `control.py` explains, and no barrier may be used here. Kernels for other schedules are compiled
without it.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound
from greedylr_fused.backends.triton.slots import EVENT, GROUPS, INITIAL, LEVEL, N_GROUPS, slots
from greedylr_fused.schedules import HUGE_LOSS, ROUNDING, Backup, Event, Kind, Phase

_KIND, _STEP, _SIZE, _SETTLE, _ANNEAL = slots("kind step window_size settle anneal")
_BEGIN, _UNTIL, _RAISE_BY, _CUT_BY, _FADE = slots("search_begin search_until raise_by cut_by fade")
_LOWEST, _HIGHEST, _ERRORS, _BACKUP = slots("lowest highest errors backup")
_PHASE, _WINDOW_STEP, _SEARCH_LEVEL, _TRIAL_LEVEL = slots("phase window_step search_level trial_level")
_MULTIPLIER, _LOSSES, _FIRST, _Y, _YY, _XY = slots("multiplier search_losses first_loss sum_y sum_yy sum_xy")
_KEPT, _KEPT_VAR, _AGAIN, _GAIN, _GAIN_VAR = slots("kept kept_var again gain gain_var")
_RISING, _FADED, _WORST = slots("rising faded worst_loss")
_CLIMB = tl.constexpr(int(Kind.CLIMB))
_WAIT, _TRIAL, _CONTROL, _FROZEN = (tl.constexpr(int(code)) for code in Phase)
_TAKE, _PUT_BACK = tl.constexpr(int(Backup.TAKE)), tl.constexpr(int(Backup.PUT_BACK))
_RAISE, _CUT, _TRY, _BACK, _FREEZE = (
    tl.constexpr(int(code)) for code in (Event.RAISE, Event.CUT, Event.TRY, Event.BACK, Event.FREEZE)
)
#: Of a level that is a product, when it is compared with the starting LR.
_ROUNDED_UP = tl.constexpr(1.0 + ROUNDING)
_HUGE = tl.constexpr(HUGE_LOSS)


@triton.jit
def is_trying(c):
    """Return whether a trial is open."""
    return tl.load(c + _PHASE) == _TRIAL


@triton.jit
def _decide(c, x, phase):
    finite = tl.abs(x) < tl.full((), _HUGE, tl.float64)  # L1
    climbs = tl.load(c + _KIND) == _CLIMB
    worst = tl.load(c + _WORST)
    if (phase == _TRIAL) & ((finite & (climbs | (x <= worst))) == 0):  # L2
        _copy_after(c, _PUT_BACK)
        if climbs == 0:
            _lower(c)
        elif _is_above_start(c):
            tl.store(c + _PHASE, tl.full((), _FROZEN, tl.float64))
        else:
            _keep(c, float("nan"), float("nan"))
            _open(c, _CONTROL)
    else:
        if finite & (climbs == 0):  # L3
            tl.store(c + _WORST, tl.where(x > worst, x, worst))
        if phase == _WAIT:  # L4
            if tl.load(c + _STEP) >= tl.load(c + _BEGIN):
                if climbs:
                    _try_higher(c)
                else:
                    _measure(c)
        else:
            window_step = tl.load(c + _WINDOW_STEP)  # L5
            if finite & (window_step >= tl.load(c + _SETTLE)):
                _count(c, x)
            tl.store(c + _WINDOW_STEP, window_step + 1)
            if window_step + 1 >= tl.load(c + _SIZE):
                _conclude(c, climbs, phase == _TRIAL)


@triton.jit
def _conclude(c, climbs, tried):
    """Close a window: that of a trial or a control of Climb (L6), or of a trial or a measurement of AdaLRS (L7)."""
    if climbs:  # L6
        mean, var = _mean(c)
        if tried:
            _keep(c, mean, var)
            _copy_after(c, _PUT_BACK)
            _open(c, _CONTROL)
        else:
            _judge_mean(c, mean, var)
    else:  # L7
        speed, var = _speed(c)
        if tried:
            _judge_trial(c, speed, var)
        else:
            _judge_speed(c, speed, var)


@triton.jit
def _copy_after(c, WHAT: tl.constexpr):
    tl.store(c + _BACKUP, tl.full((), WHAT, tl.float64))


@triton.jit
def _keep(c, value, var):
    tl.store(c + _KEPT, value)
    tl.store(c + _KEPT_VAR, var)


@triton.jit
def _open(c, phase):
    tl.store(c + _PHASE, tl.full((), phase, tl.float64))
    tl.store(c + _WINDOW_STEP, 0.0)
    tl.store(c + _LOSSES, 0.0)
    tl.store(c + _FIRST, 0.0)
    tl.store(c + _Y, 0.0)
    tl.store(c + _YY, 0.0)
    tl.store(c + _XY, 0.0)


@triton.jit
def _is_late(c, windows):
    """Return whether so many windows would not end in time."""
    return tl.load(c + _STEP) + windows * tl.load(c + _SIZE) > tl.load(c + _UNTIL)


@triton.jit
def _count(c, x):
    n = tl.load(c + _LOSSES)
    first = tl.where(n == 0, x, tl.load(c + _FIRST))
    y = x - first
    tl.store(c + _FIRST, first)
    tl.store(c + _Y, tl.load(c + _Y) + y)
    tl.store(c + _YY, tl.load(c + _YY) + y * y)
    tl.store(c + _XY, tl.load(c + _XY) + n * y)
    tl.store(c + _LOSSES, n + 1)


@triton.jit
def _not_below(x, low):
    return tl.where(x > low, x, low)


@triton.jit
def _mean(c):
    """Return the mean loss and the square of its standard error."""
    n, total = tl.load(c + _LOSSES), tl.load(c + _Y)
    mean = total / n
    var = _not_below(tl.load(c + _YY) - total * mean, 0.0) / (n - 1) / n
    few = n < 2
    return tl.where(few, float("nan"), tl.load(c + _FIRST) + mean), tl.where(few, float("nan"), var)


@triton.jit
def _speed(c):
    """Return minus the slope of the least-squares line and the square of its standard error."""
    n, total = tl.load(c + _LOSSES), tl.load(c + _Y)
    xx = n * (n * n - 1) / 12
    xy = tl.load(c + _XY) - (n - 1) / 2 * total
    yy = tl.load(c + _YY) - total * total / n
    var = _not_below(yy - xy * xy / xx, 0.0) / (n - 2) / xx
    few = n < 3
    return tl.where(few, float("nan"), -(xy / xx)), tl.where(few, float("nan"), var)


@triton.jit
def _is_above_start(c):
    """Return whether the trial's level is above the starting LR, where it must win."""
    return tl.load(c + _TRIAL_LEVEL) > tl.full((), _ROUNDED_UP, tl.float64)


@triton.jit
def _judge_mean(c, mean, var):
    """Compare the control's losses with those of the trial before it. A trial that wins is taken. Up to the starting LR
    another one is, too, unless a second one loses with it, or there is no time for that and it loses.
    """
    gain, kept_var = mean - tl.load(c + _KEPT), tl.load(c + _KEPT_VAR)
    errors, trial_level = tl.load(c + _ERRORS), tl.load(c + _TRIAL_LEVEL)
    known = _is_above_start(c) == 0
    wins = gain > errors * tl.sqrt(var + kept_var)
    var += tl.where(kept_var < var, kept_var, var)  # a trial that explodes is no excuse for itself
    before, before_var = tl.load(c + _GAIN), tl.load(c + _GAIN_VAR)
    one_wins = (gain >= 0) | (before > 0)
    stands = (gain == gain) & (one_wins | (before + gain >= -(errors * tl.sqrt(before_var + var))))
    once_more = known & (wins == 0) & (tl.load(c + _AGAIN) == 0) & (_is_late(c, 2) == 0)
    taken = (once_more == 0) & (wins | (known & stands))
    if taken:
        tl.store(c + _SEARCH_LEVEL, trial_level)
    if taken | once_more:
        forgets = taken | (gain != gain)  # of a trial that failed the second one knows nothing
        tl.store(c + _AGAIN, tl.where(taken, 0.0, 1.0))
        tl.store(c + _GAIN, tl.where(forgets, 0.0, gain))
        tl.store(c + _GAIN_VAR, tl.where(forgets, 0.0, var))
        _try_higher(c)
    else:
        tl.store(c + _PHASE, tl.full((), _FROZEN, tl.float64))


@triton.jit
def _try_higher(c):
    level = tl.load(c + _SEARCH_LEVEL)
    trial_level = level * tl.load(c + _RAISE_BY)
    tl.store(c + _TRIAL_LEVEL, trial_level)
    if (trial_level > tl.load(c + _HIGHEST)) | _is_late(c, 2):
        tl.store(c + _SEARCH_LEVEL, tl.where(tl.load(c + _AGAIN) == 0, _not_below(level, 1.0), level))
        tl.store(c + _PHASE, tl.full((), _FROZEN, tl.float64))
    else:
        _copy_after(c, _TAKE)
        _open(c, _TRIAL)


@triton.jit
def _measure(c):
    """Open a window at the level, or end the search where none ends in time."""
    _open(c, tl.where(_is_late(c, 1), _FROZEN, _CONTROL).to(tl.float64))


@triton.jit
def _lower(c):
    faded = tl.load(c + _FADED)
    lowered = tl.load(c + _SEARCH_LEVEL) / _not_below(faded * tl.load(c + _CUT_BY), 1.0)
    tl.store(c + _SEARCH_LEVEL, _not_below(lowered, tl.load(c + _LOWEST)))
    tl.store(c + _FADED, faded * tl.load(c + _FADE))
    tl.store(c + _RISING, 0.0)
    _keep(c, float("nan"), float("nan"))
    _measure(c)


@triton.jit
def _rises_again(c, speed):
    """Return whether this is at least the second window in turn in which the loss rose."""
    rising = tl.where(speed < 0, tl.load(c + _RISING) + 1, 0.0)
    tl.store(c + _RISING, rising)
    return rising >= 2


@triton.jit
def _judge_speed(c, speed, var):
    """Compare the speed with that of the window before."""
    slower = speed < tl.load(c + _KEPT)
    _keep(c, speed, var)
    level, highest = tl.load(c + _SEARCH_LEVEL), tl.load(c + _HIGHEST)
    raised = level * _not_below(tl.load(c + _FADED) * tl.load(c + _RAISE_BY), 1.0)
    raised = tl.where(raised < highest, raised, highest)
    if _rises_again(c, speed):
        _lower(c)
    elif slower & (raised > level) & (_is_late(c, 1) == 0):
        tl.store(c + _TRIAL_LEVEL, raised)
        _copy_after(c, _TAKE)
        _open(c, _TRIAL)
    else:
        _measure(c)


@triton.jit
def _judge_trial(c, speed, var):
    """Keep the trial's level, cut, or neither."""
    kept = tl.load(c + _KEPT)
    error = tl.load(c + _ERRORS) * tl.sqrt((var + tl.load(c + _KEPT_VAR)) / 2)
    rises, slower = _rises_again(c, speed), speed < kept - error
    if slower:
        _copy_after(c, _PUT_BACK)
    if slower | rises:
        _lower(c)
    else:
        if speed > kept + error:
            tl.store(c + _SEARCH_LEVEL, tl.load(c + _TRIAL_LEVEL))
            _keep(c, speed, var)
            tl.store(c + _FADED, tl.load(c + _FADED) * tl.load(c + _FADE))
        _measure(c)


@triton.jit
def _next_multiplier(c):
    phase = tl.load(c + _PHASE)  # L8
    level = tl.where(phase == _TRIAL, tl.load(c + _TRIAL_LEVEL), tl.load(c + _SEARCH_LEVEL))
    anneal = tl.load(c + _ANNEAL)
    left = (tl.load(c + _SIZE) - tl.load(c + _WINDOW_STEP)) / anneal
    anneals = (anneal != 0) & ((phase == _TRIAL) | (phase == _CONTROL))
    return tl.where(anneals, level * tl.where(left < 1, left, 1.0), level)


@triton.jit
def search(c, x):
    """Take the loss x of a step, NaN for one that was skipped in a trial, after it; `event` and `backup` are 0."""
    phase, before = tl.load(c + _PHASE), tl.load(c + _SEARCH_LEVEL)
    if phase != _FROZEN:
        _decide(c, x, phase)
    multiplier = _next_multiplier(c)
    tl.store(c + _MULTIPLIER, multiplier)
    n_groups = tl.load(c + N_GROUPS).to(tl.int32)
    for group in range(loop_bound(n_groups)):
        slot = c + GROUPS + group
        tl.store(slot + LEVEL * n_groups, tl.load(slot + INITIAL * n_groups) * multiplier)
    level, now = tl.load(c + _SEARCH_LEVEL), tl.load(c + _PHASE)  # L9
    event = tl.where((phase == _TRIAL) & (now != _TRIAL), _BACK, 0)
    event = tl.where(tl.load(c + _BACKUP) == _TAKE, _TRY, event)
    event = tl.where((now == _FROZEN) & (phase != _FROZEN), _FREEZE, event)
    event = tl.where(level < before, _CUT, event)
    tl.store(c + EVENT, tl.where(level > before, _RAISE, event).to(tl.float64))
