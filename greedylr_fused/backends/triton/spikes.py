"""Skipping of spikes in Triton (K1-K4), called by `run_clip` in `control.py`; `greedylr_fused/schedules/spikes.py` says
what a spike is.

Whether there are rings is a slot that no kernel writes, so that all threads agree about the branch, and the sums in it
may use barriers. What they read is read before the one thread that stores (`control.py`) stores into a ring.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import loop_bound
from greedylr_fused.backends.triton.slots import GROUPS, N_GROUPS, RING, slots
from greedylr_fused.schedules import LANES

_SPIKE_WINDOW, _SPIKE_MINIMUM, _SPIKE_SIGMAS = slots("spike_window spike_minimum spike_sigmas")
_SPIKES, _SPIKE_LOSSES, _LOSSES_HEAD, _SPIKE_NORMS, _NORMS_HEAD = slots(
    "spikes spike_losses losses_head spike_norms norms_head"
)
_MODE_MAX, _SMOOTH, _WINDOW_SIZE = slots("mode_max smooth window_size")
_LOSS_SUM, _LOSS_WEIGHT = slots("loss_sum loss_weight")
_LANES, _HALVINGS = tl.constexpr(LANES), tl.constexpr(LANES.bit_length() - 1)


@triton.jit
def _limit(c, ring, size, COUNT: tl.constexpr, HEAD: tl.constexpr, sigmas):
    """Return the limit of the values in a ring; NaN, beyond which nothing is, if it has none."""
    count, head = tl.load(c + COUNT).to(tl.int32), tl.load(c + HEAD).to(tl.int32)
    oldest = tl.where(count < size, 0, head)
    base = tl.load(ring + oldest)
    mean = _sum(ring, size, count, oldest, base, 0.0, False) / count  # K1
    squares = _sum(ring, size, count, oldest, base, mean, True)
    judges = (count >= tl.load(c + _SPIKE_MINIMUM)) & (squares > 0)
    limit = base + (mean + sigmas * tl.sqrt(squares / (count - 1)))  # K2
    return tl.where(judges, limit, float("nan"))


@triton.jit
def _sum(ring, size, count, oldest, base, mean, SQUARES: tl.constexpr):
    """Return the sum of the deviations from `base`, or of the squares of what they are away from `mean`, each thread's
    every 32nd, and then in pairs of neighbours.
    """
    lanes = tl.zeros([_LANES], tl.float64)
    for begin in range(0, loop_bound(count), _LANES):
        age = begin + tl.arange(0, _LANES)
        place = oldest + age
        place = tl.where(place < size, place, place - size)
        apart = tl.load(ring + place, age < count, other=0) - base
        if SQUARES:
            apart -= mean
            apart *= apart
        lanes += tl.where(age < count, apart, 0)
    for _ in tl.static_range(_HALVINGS):
        lanes = _in_pairs(lanes)
    return tl.sum(lanes)  # of one


@triton.jit
def _in_pairs(lanes):
    even, odd = tl.split(tl.reshape(lanes, [lanes.shape[0] // 2, 2]))
    return even + odd


@triton.jit
def skip_spikes(c, grad_norm, skip):
    """Return whether the step is skipped, if so far it was (`skip`) or was not."""
    size = tl.load(c + _SPIKE_WINDOW).to(tl.int32)
    if size != 0:
        losses = c + GROUPS + RING * tl.load(c + N_GROUPS).to(tl.int32)
        losses += tl.where(tl.load(c + _SMOOTH) != 0, tl.load(c + _WINDOW_SIZE).to(tl.int32), 0)
        norms = losses + size
        sigmas = tl.load(c + _SPIKE_SIGMAS)
        maximized = tl.load(c + _MODE_MAX) != 0
        loss_limit = _limit(c, losses, size, _SPIKE_LOSSES, _LOSSES_HEAD, tl.where(maximized, -sigmas, sigmas))
        norm_limit = _limit(c, norms, size, _SPIKE_NORMS, _NORMS_HEAD, sigmas)
        weight = tl.load(c + _LOSS_WEIGHT)
        loss = tl.where(weight != 0, tl.load(c + _LOSS_SUM) / weight, float("nan"))
        beyond = tl.where(maximized, loss < loss_limit, loss > loss_limit)  # K3
        spike = (_is_finite(loss) & beyond) | (_is_finite(grad_norm) & (grad_norm > norm_limit))
        tl.store(c + _SPIKES, tl.load(c + _SPIKES) + (spike & (skip == 0)).to(tl.float64))
        _enter(c, losses, size, _SPIKE_LOSSES, _LOSSES_HEAD, loss)
        _enter(c, norms, size, _SPIKE_NORMS, _NORMS_HEAD, grad_norm)
        skip = skip | spike
    return skip


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _enter(c, ring, size, COUNT: tl.constexpr, HEAD: tl.constexpr, x):
    """Put a finite value into a ring, that of a skipped step too, or a shift of level would skip for ever."""
    if _is_finite(x):  # K4
        count, head = tl.load(c + COUNT), tl.load(c + HEAD)
        tl.store(ring + head.to(tl.int32), x)
        tl.store(c + HEAD, tl.where(head + 1 == size, 0, head + 1))
        tl.store(c + COUNT, tl.where(count == size, count, count + 1))
