"""The control vector in Triton: G1-G4 and C1-C9, run by the last program of a launch or as a tiny program of their own.

Scalars are stored by one thread of the program, which sees its own stores in order; what the others compute is
thrown away, so no barrier is needed, and none may be used where a decision taken from these slots has been branched
on. float64 throughout; launch with `enable_fp_fusion=False`, or the compiler may round less often than the schedulers
written in Python floats that these decisions are compared with bit for bit.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton_access import loop_bound
from greedylr_fused.control import GROUPS_BEGIN, SLOT
from greedylr_fused.formats import Row


def _slots(names):
    return tuple(tl.constexpr(SLOT[name]) for name in names.split())


_KIND, _MODE_MAX, _FACTOR, _PATIENCE = _slots("kind mode_max factor patience")
_THRESHOLD, _THRESHOLD_REL, _COOLDOWN, _WARMUP = _slots("threshold threshold_rel cooldown warmup")
_EPS, _SMOOTH, _WINDOW_SIZE, _RESET_START = _slots("eps smooth window_size reset_start")
_MAX_GRAD_NORM, _SKIP_NONFINITE, _N_GROUPS = _slots("max_grad_norm skip_nonfinite n_groups")
_STEP, _SKIPPED, _LOSS_SUM, _LOSS_WEIGHT = _slots("step skipped loss_sum loss_weight")
_LOSS, _SMOOTHED, _BEST, _GOOD, _BAD = _slots("loss smoothed best good bad")
_COOLDOWN_LEFT, _WARMUP_LEFT, _RESETS_LEFT = _slots("cooldown_left warmup_left resets_left")
_WINDOW_SUM, _WINDOW_COUNT, _WINDOW_HEAD = _slots("window_sum window_count window_head")
_GRAD_SQ_SUM, _GRAD_NONFINITE, _GRAD_SCALE = _slots("grad_sq_sum grad_nonfinite grad_scale")
_FOUND_INF, _GRAD_NORM, _GRAD_MULTIPLIER, _SKIP = _slots("found_inf grad_norm grad_multiplier skip")
_GROUPS, _GRAD = tl.constexpr(GROUPS_BEGIN), tl.constexpr(int(Row.GRAD))
#: Sums per iteration, and step counts: one per thread, so that none changes threads between list and store.
_SUMS, _COUNTS = tl.constexpr(512), tl.constexpr(128)


@triton.jit
def decide(c):
    """Gradient norm, multiplier and skip from what was measured and what AMP told us."""
    inv = 1 / tl.load(c + _GRAD_SCALE)  # G1
    grad_norm = tl.sqrt(tl.load(c + _GRAD_SQ_SUM)) * inv
    max_grad_norm = tl.load(c + _MAX_GRAD_NORM)  # G2
    clip = max_grad_norm / (grad_norm + tl.full((), 1e-6, tl.float64))
    clip = tl.where((clip > 1) | (max_grad_norm == float("inf")), 1, clip)  # a NaN norm passes
    skip = (tl.load(c + _SKIP_NONFINITE) != 0) & (tl.load(c + _GRAD_NONFINITE) > 0)
    skip = skip | (tl.load(c + _FOUND_INF) != 0)
    tl.store(c + _GRAD_NORM, grad_norm)
    tl.store(c + _GRAD_MULTIPLIER, clip * inv)  # G3
    tl.store(c + _SKIP, skip.to(tl.float64))  # G4


@triton.jit
def add_sums(square_sums, nonfinite, n):
    """The total of `n` sums, always added in the same order, and how many of them hold a non-finite element."""
    total = tl.zeros([_SUMS], tl.float64)
    bad = tl.zeros([_SUMS], tl.int32)
    for start in range(0, loop_bound(n), _SUMS):
        at = start + tl.arange(0, _SUMS)
        total += tl.load(square_sums + at, at < n, other=0)
        bad += tl.load(nonfinite + at, at < n, other=0)
    return tl.sum(total), tl.sum(bad)


@triton.jit
def conclude(c, square_sums, nonfinite, n, DECIDES: tl.constexpr):
    """Close the measurement: `n` sums become grad_sq_sum and grad_nonfinite; decide, unless other ranks come first."""
    total, bad = add_sums(square_sums, nonfinite, n)
    tl.store(c + _GRAD_SQ_SUM, total)
    tl.store(c + _GRAD_NONFINITE, bad.to(tl.float64))
    if DECIDES:
        decide(c)


@triton.jit(do_not_specialize=["c", "square_sums", "nonfinite", "n"])
def conclude_kernel(c, square_sums, nonfinite, n, DECIDES: tl.constexpr):
    """`conclude` for a table that has nothing to read."""
    conclude(c, square_sums, nonfinite, n, DECIDES)


@triton.jit(do_not_specialize=["c"])
def decide_kernel(c):
    """`decide` for a step whose gradients are not read."""
    decide(c)


@triton.jit
def _observe(c, x):
    """C1-C9 for the mean loss x of this step."""
    tl.store(c + _LOSS, x)  # C1
    finite = tl.abs(x) < float("inf")
    if tl.load(c + _KIND) == 0:
        tl.store(c + _SMOOTHED, x)
    else:
        if finite:  # C2
            if tl.load(c + _SMOOTH) != 0:
                x = _window_mean(c, x)
            tl.store(c + _SMOOTHED, x)
        cooldown_left, warmup_left = tl.load(c + _COOLDOWN_LEFT), tl.load(c + _WARMUP_LEFT)
        cooling = cooldown_left > 0
        if cooling | (warmup_left > 0):  # C3
            tl.store(c + _COOLDOWN_LEFT, tl.where(cooling, cooldown_left - 1, cooldown_left))
            tl.store(c + _WARMUP_LEFT, tl.where(cooling, warmup_left, warmup_left - 1))
            tl.store(c + _GOOD, 0.0)
            tl.store(c + _BAD, 0.0)
        else:
            _judge(c, x, finite)


@triton.jit
def _window_mean(c, x):
    """Put x into the ring; the mean of what the ring then holds."""
    size = tl.load(c + _WINDOW_SIZE)
    count = tl.load(c + _WINDOW_COUNT)
    head = tl.load(c + _WINDOW_HEAD)
    slot = c + _GROUPS + 4 * tl.load(c + _N_GROUPS).to(tl.int32) + head.to(tl.int32)
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
def _judge(c, x, finite):
    """Compare x with the best, count, and move the learning rates."""
    best, good, bad = tl.load(c + _BEST), tl.load(c + _GOOD), tl.load(c + _BAD)
    cooldown_left, warmup_left = tl.load(c + _COOLDOWN_LEFT), tl.load(c + _WARMUP_LEFT)
    resets_left, reset_start = tl.load(c + _RESETS_LEFT), tl.load(c + _RESET_START)
    patience = tl.load(c + _PATIENCE)
    better = finite & _is_better(c, x, best)  # C4
    best = tl.where(better, x, best)  # C5
    good = tl.where(better, good + 1, 0.0)
    bad = tl.where(better, 0.0, bad + 1)
    if good > patience:  # C6
        _raise_lr(c)
        resets_left = reset_start
        warmup_left = tl.load(c + _WARMUP)
        good = tl.zeros_like(good)
    elif bad > patience:  # C7
        at_floor = _cut_lr(c)
        resets_left = tl.where(at_floor, resets_left - 1, resets_left)
        if at_floor & (resets_left <= 0):  # C8
            _restore_lr(c)
            best = tl.where(tl.load(c + _MODE_MAX) != 0, -float("inf"), float("inf")).to(tl.float64)
            good = tl.zeros_like(good)
            warmup_left = tl.zeros_like(warmup_left)
            resets_left = reset_start
            tl.store(c + _WINDOW_SUM, 0.0)
            tl.store(c + _WINDOW_COUNT, 0.0)
            tl.store(c + _WINDOW_HEAD, 0.0)
        cooldown_left = tl.load(c + _COOLDOWN)  # C9
        bad = tl.zeros_like(bad)
    tl.store(c + _BEST, best)
    tl.store(c + _GOOD, good)
    tl.store(c + _BAD, bad)
    tl.store(c + _COOLDOWN_LEFT, cooldown_left)
    tl.store(c + _WARMUP_LEFT, warmup_left)
    tl.store(c + _RESETS_LEFT, resets_left)


@triton.jit
def _is_better(c, x, best):
    threshold = tl.load(c + _THRESHOLD)
    relative = tl.load(c + _THRESHOLD_REL) != 0
    below = tl.where(relative, best * (1 - threshold), best - threshold)
    above = tl.where(relative, best * (1 + threshold), best + threshold)
    return tl.where(tl.load(c + _MODE_MAX) != 0, x > above, x < below)


@triton.jit
def _raise_lr(c):
    """Every group's LR divided by the factor, up to its bound."""
    factor, eps = tl.load(c + _FACTOR), tl.load(c + _EPS)
    n_groups = tl.load(c + _N_GROUPS).to(tl.int32)
    for group in range(loop_bound(n_groups)):
        slot = c + _GROUPS + group
        lr = tl.load(slot)
        new = tl.minimum(lr / factor, tl.load(slot + 3 * n_groups))
        tl.store(slot, tl.where(new - lr > eps, new, lr))


@triton.jit
def _cut_lr(c):
    """Every group's LR times the factor, down to its bound; whether all groups are at their bound."""
    factor, eps = tl.load(c + _FACTOR), tl.load(c + _EPS)
    n_groups = tl.load(c + _N_GROUPS).to(tl.int32)
    above_floor = 0
    for group in range(loop_bound(n_groups)):
        slot = c + _GROUPS + group
        lr, min_lr = tl.load(slot), tl.load(slot + 2 * n_groups)
        new = tl.maximum(lr * factor, min_lr)
        new = tl.where(lr - new > eps, new, lr)
        tl.store(slot, new)
        above_floor += (new > min_lr).to(tl.int32)
    return above_floor == 0


@triton.jit
def _restore_lr(c):
    n_groups = tl.load(c + _N_GROUPS).to(tl.int32)
    for group in range(loop_bound(n_groups)):
        slot = c + _GROUPS + group
        tl.store(slot, tl.load(slot + n_groups))


@triton.jit
def _advance_steps(ptrs, steps, n_tensors, others, n_others):
    """One more step for every tensor of the list `others` that has a gradient."""
    for start in range(0, loop_bound(n_others), _COUNTS):
        at = start + tl.arange(0, _COUNTS)
        inside = at < n_others
        tensor = tl.load(others + at, inside, other=0)
        due = inside & (tl.load(ptrs + _GRAD * n_tensors + tensor, inside, other=0) != 0)
        tl.store(steps + tensor, tl.load(steps + tensor, due) + 1, due)


@triton.jit
def commit(c, ptrs, steps, n_tensors, others, n_others):
    """Close the step: the step counts of `others`, then the loss decides the next learning rates."""
    loss_sum, loss_weight = tl.load(c + _LOSS_SUM), tl.load(c + _LOSS_WEIGHT)
    tl.store(c + _LOSS_SUM, 0.0)
    tl.store(c + _LOSS_WEIGHT, 0.0)
    if tl.load(c + _SKIP) != 0:
        tl.store(c + _SKIPPED, tl.load(c + _SKIPPED) + 1)
    else:
        _advance_steps(ptrs, steps, n_tensors, others, n_others)
        tl.store(c + _STEP, tl.load(c + _STEP) + 1)
        if loss_weight != 0:
            _observe(c, loss_sum / loss_weight)


@triton.jit(do_not_specialize=["c", "ptrs", "steps", "n_tensors", "others", "n_others"])
def commit_kernel(c, ptrs, steps, n_tensors, others, n_others):
    """`commit` for a table that has nothing to update, or after the update."""
    commit(c, ptrs, steps, n_tensors, others, n_others)
