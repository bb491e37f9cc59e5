"""The roofline on a GPU: 16-byte accesses only, in Triton, as one program per block and as a grid that stays.

Streams are seen as 32-bit words. A block is so many elements that a 16-bit stream has `WORDS` words of them; a 32-bit
stream has twice as many, in two pieces of the same layout. So nothing is converted between layouts, and every access
is 16 bytes wide whatever the mix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.cases.mixes import Mix
from benchmarks.cases.workload import MOMENTS

#: (words per piece, warps): 4 or 8 words per thread.
_BLOCKS = ((1024, 8), (2048, 8))
#: Programs per multiprocessor of the grid that stays.
_RESIDENT = (4, 8)


@triton.jit
def _load(stream, block, UNITS: tl.constexpr, WORDS: tl.constexpr):
    """Both pieces of a block; the first twice if there is only one."""
    at = block * (UNITS * WORDS) + tl.arange(0, WORDS)
    first = tl.load(stream + at)
    second = first
    if UNITS == 2:
        second = tl.load(stream + at + WORDS)
    return first, second


@triton.jit
def _store(stream, block, first, second, UNITS: tl.constexpr, WORDS: tl.constexpr):
    at = block * (UNITS * WORDS) + tl.arange(0, WORDS)
    tl.store(stream + at, first)
    if UNITS == 2:
        tl.store(stream + at + WORDS, second)


@triton.jit
def _touch(param, grad, m, v, x, block, zeros, P, G, S, MOMENTS_: tl.constexpr, WORDS: tl.constexpr):
    """Load everything, then store it xor bits of the gradient that are masked away: no value changes."""
    g0, g1 = _load(grad, block, G, WORDS)
    p0, p1 = _load(param, block, P, WORDS)
    m0, m1 = _load(m, block, S, WORDS)
    v0, v1 = _load(v, block, S, WORDS)
    x0, x1 = v0, v1
    if MOMENTS_ == 3:
        x0, x1 = _load(x, block, S, WORDS)
    g0, g1 = g0 & zeros, g1 & zeros
    _store(param, block, p0 ^ g0, p1 ^ g1, P, WORDS)
    _store(m, block, m0 ^ g0, m1 ^ g1, S, WORDS)
    _store(v, block, v0 ^ g0, v1 ^ g1, S, WORDS)
    if MOMENTS_ == 3:
        _store(x, block, x0 ^ g0, x1 ^ g1, S, WORDS)


@triton.jit(do_not_specialize=["blocks", "zeros"])
def roofline_kernel(
    param,
    grad,
    m,
    v,
    x,
    blocks,
    zeros,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    MOMENTS_: tl.constexpr,
    WORDS: tl.constexpr,
    STAYS: tl.constexpr,
):
    """P, G, S: pieces per block, 1 for 16-bit and 2 for 32-bit elements. `zeros`: 0, unknown to the compiler."""
    block = tl.program_id(0).to(tl.int64)
    if STAYS:
        while block < blocks:
            _touch(param, grad, m, v, x, block, zeros, P, G, S, MOMENTS_, WORDS)
            block += tl.num_programs(0)
    else:
        _touch(param, grad, m, v, x, block, zeros, P, G, S, MOMENTS_, WORDS)


def candidates(flat: dict[str, Tensor], mix: Mix, processors: int | None = None) -> dict[str, Callable[[], object]]:
    """Every form over these buffers, by name.

    Args:
        flat: one contiguous tensor per stream; a part of a block at the end is left out.
        mix: types of 2 or 4 bytes.
        processors: multiprocessors of the device; default: ask it.
    """
    words = [flat[name].view(torch.int32) for name in ("param", "grad", *MOMENTS[: mix.moments])]
    words += [words[-1]] * (5 - len(words))
    units = [dtype.itemsize // 2 for dtype in (mix.param, mix.grad, mix.state)]
    if processors is None:
        processors = torch.cuda.get_device_properties(flat["param"].device).multi_processor_count
    forms: dict[str, Callable[[], object]] = {}
    for size, warps in _BLOCKS:
        blocks = max(1, flat["param"].numel() // (2 * size))
        for resident in (None, *_RESIDENT):
            grid = blocks if resident is None else min(blocks, resident * processors)
            forms[f"{size} words, " + ("a program each" if resident is None else f"{resident} programs per SM")] = (
                lambda grid=grid, blocks=blocks, size=size, stays=resident is not None, warps=warps: roofline_kernel[
                    (grid,)
                ](*words, blocks, 0, *units, mix.moments, size, stays, num_warps=warps)
            )
    return forms
