"""The part of the control step in which the loss moves the level of the learning rate (C1-C9), in Triton.

One thread stores, as `control.py` explains, and no barrier may be used here.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound
from greedylr_fused.backends.triton.slots import EVENT, GROUPS, INITIAL, LEVEL, LOSS, MAX, MIN, N_GROUPS, RING, slots
from greedylr_fused.schedules import CompareWith, Event, Kind

_KIND, _MODE_MAX, _FACTOR, _PATIENCE = slots("kind mode_max factor patience")
_THRESHOLD, _THRESHOLD_REL, _COOLDOWN, _WARMUP = slots("threshold threshold_rel cooldown warmup")
_EPS, _SMOOTH, _WINDOW_SIZE, _RESET_START = slots("eps smooth window_size reset_start")
_RAISES, _COMPARE_WITH, _FORGET_EVERY, _FORGET_LEFT = slots("raises compare_with forget_every forget_left")
_SMOOTHED, _BEST, _GOOD, _BAD = slots("smoothed best good bad")
_COOLDOWN_LEFT, _WARMUP_LEFT, _RESETS_LEFT = slots("cooldown_left warmup_left resets_left")
_WINDOW_SUM, _WINDOW_COUNT, _WINDOW_HEAD = slots("window_sum window_count window_head")
_NO_SCHEDULE, _BEST_EVER, _LAST = (tl.constexpr(int(code)) for code in (Kind.NONE, CompareWith.BEST, CompareWith.LAST))
_RAISE, _CUT, _RESET = (tl.constexpr(int(code)) for code in (Event.RAISE, Event.CUT, Event.RESET))


@triton.jit
def observe(c, x, SEARCHES: tl.constexpr):
    """Take the mean loss x of this step, and move the level by it unless it SEARCHES: `search` does."""
    tl.store(c + LOSS, x)  # C1
    finite = tl.abs(x) < float("inf")
    if tl.load(c + _KIND) == _NO_SCHEDULE:
        tl.store(c + _SMOOTHED, x)
    else:
        if finite:  # C2
            if tl.load(c + _SMOOTH) != 0:
                x = _window_mean(c, x)
            tl.store(c + _SMOOTHED, x)
        if not SEARCHES:
            _judge(c, x, finite)


@triton.jit
def _judge(c, x, finite):
    """Compare the loss (C3-C5), and move the levels (C6-C9) unless this observation is waited through."""
    forget_every, forget_left = tl.load(c + _FORGET_EVERY), tl.load(c + _FORGET_LEFT)
    best = tl.load(c + _BEST)
    known = best != _worst(c)
    cooldown_left, warmup_left = tl.load(c + _COOLDOWN_LEFT), tl.load(c + _WARMUP_LEFT)
    due = (forget_every > 0) & (forget_left == 0)  # C3
    best = tl.where(due, _worst(c), best)
    forget_left = tl.where(due, forget_every, forget_left)
    tl.store(c + _FORGET_LEFT, tl.where(forget_every > 0, forget_left - 1, forget_left))
    cooling = cooldown_left > 0
    waits = cooling | (warmup_left > 0)
    better = finite & _is_better(c, x, best)  # C4
    compare_with = tl.load(c + _COMPARE_WITH)  # C5
    remembered = tl.where(compare_with == _LAST, finite, better & ((compare_with == _BEST_EVER) | (waits == 0)))
    tl.store(c + _BEST, tl.where(remembered, x, best))
    if waits:
        tl.store(c + _COOLDOWN_LEFT, tl.where(cooling, cooldown_left - 1, cooldown_left))
        tl.store(c + _WARMUP_LEFT, tl.where(cooling, warmup_left, warmup_left - 1))
        tl.store(c + _GOOD, 0.0)
        tl.store(c + _BAD, 0.0)
    else:
        good = tl.where(due, 0.0, tl.load(c + _GOOD))
        bad = tl.where(due, 0.0, tl.load(c + _BAD))
        _move(c, tl.where(better, good + 1, 0.0), tl.where(better, 0.0, bad + 1), known)


@triton.jit
def _window_mean(c, x):
    """Put x into the ring, and return the mean of what the ring then holds."""
    size = tl.load(c + _WINDOW_SIZE)
    count = tl.load(c + _WINDOW_COUNT)
    head = tl.load(c + _WINDOW_HEAD)
    slot = c + GROUPS + RING * tl.load(c + N_GROUPS).to(tl.int32) + head.to(tl.int32)
    oldest = tl.load(slot)
    total = tl.load(c + _WINDOW_SUM) + x  # added first, as upstream: the order decides the last bit
    full = count == size
    total = tl.where(full, total - oldest, total)
    count = tl.where(full, count, count + 1)
    tl.store(slot, x)
    tl.store(c + _WINDOW_SUM, total)
    tl.store(c + _WINDOW_COUNT, count)
    tl.store(c + _WINDOW_HEAD, tl.where(head + 1 == size, 0, head + 1))
    return total / count


@triton.jit
def _move(c, good, bad, known):
    """Move the levels if a count of observations in a row is full; `known`: there was a best before this one."""
    cooldown_left, warmup_left = tl.load(c + _COOLDOWN_LEFT), tl.load(c + _WARMUP_LEFT)
    resets_left, reset_start = tl.load(c + _RESETS_LEFT), tl.load(c + _RESET_START)
    patience = tl.load(c + _PATIENCE)
    if (tl.load(c + _RAISES) != 0) & (good > patience):  # C6
        _raise_level(c)
        resets_left = reset_start
        warmup_left = tl.load(c + _WARMUP)
        good = tl.zeros_like(good)
    elif bad > patience:  # C7
        at_floor = _cut_level(c)
        resets_left = tl.where(at_floor, resets_left - 1, resets_left)
        if at_floor & (resets_left <= 0):  # C8
            _restore_level(c, known)
            good = tl.zeros_like(good)
            warmup_left = tl.zeros_like(warmup_left)
            resets_left = reset_start
            tl.store(c + _BEST, _worst(c))
            tl.store(c + _FORGET_LEFT, tl.load(c + _FORGET_EVERY))
            tl.store(c + _WINDOW_SUM, 0.0)
            tl.store(c + _WINDOW_COUNT, 0.0)
            tl.store(c + _WINDOW_HEAD, 0.0)
        cooldown_left = tl.load(c + _COOLDOWN)  # C9
        bad = tl.zeros_like(bad)
    tl.store(c + _GOOD, good)
    tl.store(c + _BAD, bad)
    tl.store(c + _COOLDOWN_LEFT, cooldown_left)
    tl.store(c + _WARMUP_LEFT, warmup_left)
    tl.store(c + _RESETS_LEFT, resets_left)


@triton.jit
def _worst(c):
    return tl.where(tl.load(c + _MODE_MAX) != 0, -float("inf"), float("inf")).to(tl.float64)


@triton.jit
def _is_better(c, x, best):
    threshold = tl.load(c + _THRESHOLD)
    relative = tl.load(c + _THRESHOLD_REL) != 0
    below = tl.where(relative, best * (1 - threshold), best - threshold)
    above = tl.where(relative, best * (1 + threshold), best + threshold)
    return tl.where(tl.load(c + _MODE_MAX) != 0, x > above, x < below)


@triton.jit
def _raise_level(c):
    """Divide every group's level by the factor, up to its bound."""
    factor, eps = tl.load(c + _FACTOR), tl.load(c + _EPS)
    n_groups = tl.load(c + N_GROUPS).to(tl.int32)
    for group in range(loop_bound(n_groups)):
        slot = c + GROUPS + group
        level = tl.load(slot + LEVEL * n_groups)
        new = tl.minimum(level / factor, tl.load(slot + MAX * n_groups))
        if new - level > eps:
            tl.store(slot + LEVEL * n_groups, new)
            _tell(c, _RAISE)


@triton.jit
def _cut_level(c):
    """Multiply every group's level by the factor, down to its bound; return whether all groups are at theirs."""
    factor, eps = tl.load(c + _FACTOR), tl.load(c + _EPS)
    n_groups = tl.load(c + N_GROUPS).to(tl.int32)
    above_floor = 0
    for group in range(loop_bound(n_groups)):
        slot = c + GROUPS + group
        level, low = tl.load(slot + LEVEL * n_groups), tl.load(slot + MIN * n_groups)
        new = tl.maximum(level * factor, low)
        if level - new > eps:
            tl.store(slot + LEVEL * n_groups, new)
            _tell(c, _CUT)
            level = new
        above_floor += (level > low).to(tl.int32)
    return above_floor == 0


@triton.jit
def _restore_level(c, known):
    """Reset the levels; the reset is an event if it, or the cut before it, changed a level, or if it forgets a best."""
    n_groups = tl.load(c + N_GROUPS).to(tl.int32)
    if known | (tl.load(c + EVENT) == _CUT):
        _tell(c, _RESET)
    for group in range(loop_bound(n_groups)):
        slot = c + GROUPS + group
        initial = tl.load(slot + INITIAL * n_groups)
        if tl.load(slot + LEVEL * n_groups) != initial:
            tl.store(slot + LEVEL * n_groups, initial)
            _tell(c, _RESET)


@triton.jit
def _tell(c, EVENT_CODE: tl.constexpr):
    tl.store(c + EVENT, tl.full((), EVENT_CODE, tl.float64))
