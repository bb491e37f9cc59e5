"""The control vector in Triton: G1-G4, S1-S3, by `spikes.py` K1-K4 and by `observe.py` C1-C9, run by the last program
of a launch or as a tiny program of their own.

One thread of the program stores scalars, and sees its own stores in order; what the others compute is thrown away. So
no barrier is needed, and none may be used inside a branch that depends on these slots; `_show` comes after them.
float64 throughout; launch with `enable_fp_fusion=False`, or the compiler may round less often than the schedulers in
Python floats that these decisions are compared with bit for bit.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import INTERPRETED, kernel, loop_bound, pointer, step_count
from greedylr_fused.backends.triton.observe import observe
from greedylr_fused.backends.triton.search import is_trying, search
from greedylr_fused.backends.triton.slots import EVENT, GROUPS, LEVEL, LOSS, LR, N_GROUPS, slots
from greedylr_fused.backends.triton.spikes import skip_spikes
from greedylr_fused.backends.triton.tuner import run_tuner, written_at
from greedylr_fused.control import SLOTS, STATE_BEGIN
from greedylr_fused.schedules import Skip
from greedylr_fused.tensors import Row

_MAX_GRAD_NORM, _SKIP_NONFINITE = slots("max_grad_norm skip_nonfinite")
_STEP, _SKIPPED, _LOSS_SUM, _LOSS_WEIGHT = slots("step skipped loss_sum loss_weight")
_GRAD_SQ_SUM, _GRAD_ABS_SUM, _GRAD_NONFINITE = slots("grad_sq_sum grad_abs_sum grad_nonfinite")
_PARAM_SQ_SUM, _GRAD_MOVED_SUM, _PARAM_MOVED_SUM = slots("param_sq_sum grad_moved_sum param_moved_sum")
_GRAD_SCALE, _BACKUP, _TUNER_SCALE = slots("grad_scale backup tuner_scale")
_FOUND_INF, _GRAD_NORM, _GRAD_MULTIPLIER, _SKIP = slots("found_inf grad_norm grad_multiplier skip")
_CURVE_LENGTH, _DECAY_START, _DECAY_STEPS, _CURVE_VALUE = slots("curve_length decay_start decay_steps curve_value")
_GRAD = tl.constexpr(int(Row.GRAD))
_NONFINITE, _SPIKE = tl.constexpr(float(Skip.NONFINITE)), tl.constexpr(float(Skip.SPIKE))
#: First slot that a snapshot shows, and how many before those of the groups.
_STATE_BEGIN, _SHOWN = tl.constexpr(STATE_BEGIN), tl.constexpr(len(SLOTS) - STATE_BEGIN)
#: Sums per iteration, and step counts: one per thread, so that none changes threads between list and store.
_SUMS, _COUNTS = tl.constexpr(512), tl.constexpr(128)


@triton.jit
def run_clip(c, SPIKES: tl.constexpr):
    """Compute gradient norm, multiplier and skip flag from what was measured and what AMP reported; with SPIKES skip
    those, too.
    """
    inv = 1 / tl.load(c + _GRAD_SCALE)  # G1
    grad_norm = tl.sqrt(tl.load(c + _GRAD_SQ_SUM)) * inv
    max_grad_norm = tl.load(c + _MAX_GRAD_NORM)  # G2
    clip = max_grad_norm / (grad_norm + tl.full((), 1e-6, tl.float64))
    clip = tl.where((clip > 1) | (max_grad_norm == float("inf")), 1, clip)  # a NaN norm passes
    skip = (tl.load(c + _SKIP_NONFINITE) != 0) & (tl.load(c + _GRAD_NONFINITE) > 0)
    skip = skip | (tl.load(c + _FOUND_INF) != 0)
    tl.store(c + _GRAD_NORM, grad_norm)
    tl.store(c + _GRAD_MULTIPLIER, clip * inv)  # G3
    why = skip.to(tl.float64)  # G4: NONFINITE
    if SPIKES:
        why = tl.where(skip_spikes(c, grad_norm, skip) & (skip == 0), _SPIKE, why)
    tl.store(c + _SKIP, why)


@triton.jit
def add_sums(square_sums, nonfinite, n):
    """Return the total of `n` sums, always added in the same order, and how many of them hold a non-finite element."""
    total = tl.zeros([_SUMS], tl.float64)
    bad = tl.zeros([_SUMS], tl.int32)
    for start in range(0, loop_bound(n), _SUMS):
        at = start + tl.arange(0, _SUMS)
        total += tl.load(square_sums + at, at < n, other=0)
        bad += tl.load(nonfinite + at, at < n, other=0)
    return tl.sum(total), tl.sum(bad)


@triton.jit
def add_up(sums, n):
    """Return the total of `n` float64 numbers, in the order of `add_sums`."""
    total = tl.zeros([_SUMS], tl.float64)
    for start in range(0, loop_bound(n), _SUMS):
        at = start + tl.arange(0, _SUMS)
        total += tl.load(sums + at, at < n, other=0)
    return tl.sum(total)


@triton.jit
def conclude(c, square_sums, abs_sums, nonfinite, n, DECIDES: tl.constexpr, L1: tl.constexpr, TUNED: tl.constexpr):
    """Close the measurement: `n` sums of squares, absolute values (with L1) and flags become grad_sq_sum, grad_abs_sum
    and grad_nonfinite; clip if it DECIDES (if no sums of other ranks come first), and if TUNED learn from it.
    """
    total, bad = add_sums(square_sums, nonfinite, n)
    tl.store(c + _GRAD_SQ_SUM, total)
    if L1:
        tl.store(c + _GRAD_ABS_SUM, add_up(abs_sums, n))
    tl.store(c + _GRAD_NONFINITE, bad.to(tl.float64))
    if DECIDES:  # without spikes: the registers of the measurement are for the gradients
        run_clip(c, False)
        if TUNED:
            run_tuner(c)


@triton.jit
def set_moved(c, squares, grads, params):
    """Store what a tuner needs of all tensors."""
    tl.store(c + _PARAM_SQ_SUM, squares)
    tl.store(c + _GRAD_MOVED_SUM, grads)
    tl.store(c + _PARAM_MOVED_SUM, params)


@triton.jit(do_not_specialize=["c", "square_sums", "nonfinite", "n"])
def conclude_kernel(c, square_sums, nonfinite, n, DECIDES: tl.constexpr, L1: tl.constexpr, TUNED: tl.constexpr):
    """Run `conclude` for a table that has nothing to read."""
    if TUNED:
        set_moved(c, 0.0, 0.0, 0.0)
    conclude(c, square_sums, square_sums, nonfinite, n, DECIDES, L1, TUNED)


@triton.jit(do_not_specialize=["c"])
def clip_kernel(c, TUNED: tl.constexpr):
    """Run `Backend.clip`, after the sums of all ranks, for a step whose gradients are not read, or to skip spikes."""
    run_clip(c, True)
    if TUNED:
        run_tuner(c)


@triton.jit
def _set_lr(c, curve, step):
    """Set the LR by the step schedule: the level times the curve value of the next step."""
    length, start = tl.load(c + _CURVE_LENGTH), tl.load(c + _DECAY_START)
    if length != 0:
        curve_value = tl.load(curve + tl.minimum(step, length - 1).to(tl.int64))  # S1
        if step >= start:  # S2
            into = tl.minimum(step - start, tl.load(c + _DECAY_STEPS))
            curve_value *= tl.load(curve + (length + into).to(tl.int64))
        tl.store(c + _CURVE_VALUE, curve_value)
        n_groups = tl.load(c + N_GROUPS).to(tl.int32)
        for group in range(loop_bound(n_groups)):  # S3
            slot = c + GROUPS + group
            tl.store(slot + LR * n_groups, tl.load(slot + LEVEL * n_groups) * curve_value)


@triton.jit
def _advance_steps(c, ptrs, n_tensors, others, n_others, TUNED: tl.constexpr):
    """Count one more step for every tensor of the list `others` that has a gradient; if TUNED, note the S of it."""
    for start in range(0, loop_bound(n_others), _COUNTS):
        at = start + tl.arange(0, _COUNTS)
        inside = at < n_others
        tensor = tl.load(others + at, inside, other=0)
        due = inside & (tl.load(ptrs + _GRAD * n_tensors + tensor, inside, other=0) != 0)
        count = step_count(ptrs, tensor, n_tensors, inside)
        tl.store(count, tl.load(count, due) + 1, due)
        if TUNED:
            at = written_at(ptrs, tensor, n_tensors, inside)
            tl.store(at, tl.broadcast_to(tl.load(c + _TUNER_SCALE), at.shape), due)


@triton.jit
def _show(c, snapshot):
    """Write the state to memory that the host maps, between two copies of a number that no step before had, in the
    order in which the host relies on finding them (`greedylr_fused/control/snapshot.py`).
    """
    tl.debug_barrier()  # all threads are here, and see what the one has stored
    count = _SHOWN + tl.load(c + N_GROUPS).to(tl.int32)
    number = tl.load(c + _STEP) + tl.load(c + _SKIPPED)
    tl.store(snapshot, number)
    _fence()
    for start in range(0, loop_bound(count), _COUNTS):
        at = start + tl.arange(0, _COUNTS)
        inside = at < count
        tl.store(snapshot + 1 + at, tl.load(c + _STATE_BEGIN + at, inside), inside)
    _fence()
    tl.store(snapshot + 1 + count, number)


@triton.jit
def _fence():
    """Let the device and the host see what all threads stored before this before what they store after it: each fences
    what it has seen, by the barrier, of the others.
    """
    tl.debug_barrier()
    if not INTERPRETED:
        fence: tl.constexpr = "fence.acq_rel.sys; mov.b32 $0, $1;"
        at = tl.arange(0, _COUNTS)
        tl.inline_asm_elementwise(fence, "=r,r,~{memory}", [at], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def run_control(
    c,
    curve,
    snapshot,
    ptrs,
    n_tensors,
    others,
    n_others,
    loss,
    TUNED: tl.constexpr,
    SEARCHES: tl.constexpr,
    HAS_LOSS: tl.constexpr,
):
    """Close the step: count it for `others`, then let loss and step index decide the next LRs. With HAS_LOSS the one
    that `loss` points to is observed, with weight 1. Last, show the host the state at address `snapshot`, if not None.
    With SEARCHES the schedule is a level search, whose trial a step ends that is skipped for its gradients.
    """
    loss_sum, loss_weight = tl.load(c + _LOSS_SUM), tl.load(c + _LOSS_WEIGHT)
    if HAS_LOSS:
        loss_sum += tl.load(loss).to(tl.float64)
        loss_weight += 1
    tl.store(c + _LOSS_SUM, 0.0)
    tl.store(c + _LOSS_WEIGHT, 0.0)
    tl.store(c + EVENT, 0.0)
    tl.store(c + _BACKUP, 0.0)
    why = tl.load(c + _SKIP)
    skip = why != 0
    if skip:
        tl.store(c + _SKIPPED, tl.load(c + _SKIPPED) + 1)
    else:
        _advance_steps(c, ptrs, n_tensors, others, n_others, TUNED)
        tl.store(c + _STEP, tl.load(c + _STEP) + 1)
        if loss_weight != 0:
            observe(c, loss_sum / loss_weight, SEARCHES)
    moves = skip == 0
    if SEARCHES:
        fails = (why == _NONFINITE) & is_trying(c)
        if fails | (moves & (loss_weight != 0)):
            search(c, tl.where(skip, float("nan"), tl.load(c + LOSS)))
        moves = moves | fails
    if moves:
        _set_lr(c, curve, tl.load(c + _STEP))
    if snapshot is not None:
        _show(c, pointer(snapshot, tl.float64))


@kernel
def control_kernel(
    c,
    curve,
    snapshot,
    ptrs,
    n_tensors,
    others,
    n_others,
    loss,
    TUNED: tl.constexpr,
    SEARCHES: tl.constexpr,
    HAS_LOSS: tl.constexpr,
):
    """Run `Backend.control`, for a table that has nothing to update or after the update."""
    run_control(c, curve, snapshot, ptrs, n_tensors, others, n_others, loss, TUNED, SEARCHES, HAS_LOSS)


@kernel
def observe_kernel(c, loss, weight, WEIGHT_AT: tl.constexpr):
    """Run `Backend.observe`. `weight` is a pointer to it or, without WEIGHT_AT, the bits of its negative as an integer:
    Triton rounds numbers to float32, and takes small integers as 32 bits.
    """
    if WEIGHT_AT:
        w = tl.load(weight).to(tl.float64)
    else:
        w = -weight.to(tl.float64, bitcast=True)
    if w != 0:  # a mean over no tokens is NaN, and weighs nothing
        loss_sum, loss_weight = tl.load(c + _LOSS_SUM), tl.load(c + _LOSS_WEIGHT)
        tl.store(c + _LOSS_SUM, loss_sum + w * tl.load(loss).to(tl.float64))
        tl.store(c + _LOSS_WEIGHT, loss_weight + w)
