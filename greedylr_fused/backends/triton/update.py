"""The update of parameters over the pointer table, one program per chunk; the last program of the step's last launch
closes the step.

It is compiled without contraction: the close is float64 that must round as Python does, and the elements lose no time
by it, since memory is their limit.
"""

import triton.language as tl

from greedylr_fused.backends.triton.access import address, chunk_of, kernel, last_to_finish, step_count
from greedylr_fused.backends.triton.adamw import scalars_of
from greedylr_fused.backends.triton.control import run_control
from greedylr_fused.backends.triton.eight_bit import place_of
from greedylr_fused.backends.triton.elements import update_elements
from greedylr_fused.backends.triton.groups import update_groups
from greedylr_fused.backends.triton.tuner import moves_of, written_at
from greedylr_fused.control import SLOT
from greedylr_fused.tensors import Row

_GRAD, _SKIP = tl.constexpr(int(Row.GRAD)), tl.constexpr(SLOT["skip"])
_SCALE = tl.constexpr(SLOT["tuner_scale"])


@kernel
def update_kernel(
    ptrs,
    numel,
    chunk_tensor,
    chunk_index,
    control,
    first_chunk,
    group,
    hyper,
    curve,
    snapshot,
    n_tensors,
    others,
    n_others,
    counter,
    loss,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    TUNED: tl.constexpr,
    CLOSES: tl.constexpr,
    SEARCHES: tl.constexpr,
    HAS_LOSS: tl.constexpr,
):
    """Update chunk `first_chunk + program` of the table.

    P, G, S: types of parameter, gradient, moments; int8 of moments for codes of 8 bits with scales. R: type of the
    remainders of masters, int16 or int8; None for no masters. ONE_PIECE: whether all tensors lie in one piece in whole
    parameters, with one upper half of elements' indices. TUNED: whether a tuner scales the sum of all updates.

    The step of a tensor of one chunk is counted here, that of the `others` at the end of the launch that CLOSES it.
    """
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    chunk = first_chunk + tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    if (address(ptrs, _GRAD, tensor, n_tensors) != 0) & (tl.load(control + _SKIP) == 0):
        first, count, alone = chunk_of(numel, tensor, tl.load(chunk_index + chunk), CHUNK)
        taken = step_count(ptrs, tensor, n_tensors)
        steps_taken = tl.load(taken)
        scalars = scalars_of(control, hyper, tl.load(group + tensor), steps_taken, T)
        moves = None
        if TUNED:
            at = written_at(ptrs, tensor, n_tensors)
            moves = moves_of(control, hyper, tl.load(group + tensor), tl.load(at), T)
        if alone:
            tl.debug_barrier()  # every thread has read the count
            tl.store(taken, steps_taken + 1)
            if TUNED:
                tl.store(at, tl.load(control + _SCALE))
        place = 0
        if S == tl.int8 or R == tl.int8:  # rounds at random
            place = place_of(ptrs, tensor, n_tensors, first, steps_taken, CHUNK, ONE_PIECE)
        if S == tl.int8:
            update_groups(ptrs, tensor, n_tensors, first, count, scalars, moves, place, P, G, R, ONE_PIECE, BLOCK, REST)
        else:
            update_elements(
                ptrs, tensor, n_tensors, first, count, scalars, moves, place, P, G, S, T, R, ONE_PIECE, BLOCK, REST
            )
    if CLOSES:
        if last_to_finish(counter, tl.num_programs(0)):
            run_control(control, curve, snapshot, ptrs, n_tensors, others, n_others, loss, TUNED, SEARCHES, HAS_LOSS)
