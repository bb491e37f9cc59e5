"""The roofline on a GPU: 16-byte accesses only, in Triton, as one program per block and as a grid that stays.

Streams are seen as 32-bit words. A block is so many elements that the narrowest stream, of 16 bits or of 8-bit codes,
has `WORDS` words of them; a wider one has twice or four times as many, in pieces of the same layout. So nothing is
converted between layouts, and every access is 16 bytes wide whatever the mix, but for the few of scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.cases.mixes import Mix
from benchmarks.cases.workload import CODES, MOMENTS, SCALES

#: (words per piece, warps): 4 or 8 words per thread.
_BLOCKS = ((1024, 8), (2048, 8))
#: Programs per multiprocessor of the grid that stays.
_RESIDENT = (4, 8)


@triton.jit
def _load(stream, block, UNITS: tl.constexpr, WORDS: tl.constexpr):
    """The pieces of a block; the first in place of those that there are not."""
    at = block * (UNITS * WORDS) + tl.arange(0, WORDS)
    first = tl.load(stream + at)
    second, third, fourth = first, first, first
    if UNITS >= 2:
        second = tl.load(stream + at + WORDS)
    if UNITS == 4:
        third = tl.load(stream + at + 2 * WORDS)
        fourth = tl.load(stream + at + 3 * WORDS)
    return first, second, third, fourth


@triton.jit
def _store(stream, block, pieces, masks, UNITS: tl.constexpr, WORDS: tl.constexpr):
    at = block * (UNITS * WORDS) + tl.arange(0, WORDS)
    tl.store(stream + at, pieces[0] ^ masks[0])
    if UNITS >= 2:
        tl.store(stream + at + WORDS, pieces[1] ^ masks[1])
    if UNITS == 4:
        tl.store(stream + at + 2 * WORDS, pieces[2] ^ masks[2])
        tl.store(stream + at + 3 * WORDS, pieces[3] ^ masks[3])


@triton.jit
def _touch_scales(scale, block, zeros, WORDS: tl.constexpr):
    """A word per 64 elements, of which a block has 4 * WORDS."""
    at = scale + block * (WORDS // 16) + tl.arange(0, WORDS // 16)
    word = tl.load(at)
    tl.store(at, word ^ (word & zeros))


@triton.jit
def _touch(streams, block, zeros, P, G, S, R, MOMENTS_: tl.constexpr, SCALES_: tl.constexpr, WORDS: tl.constexpr):
    """Load everything, then store it xor bits of the gradient that are masked away: no value changes."""
    param, grad, m, v, x, remainder, m_scale, v_scale = streams
    g = _load(grad, block, G, WORDS)
    p = _load(param, block, P, WORDS)
    ms = _load(m, block, S, WORDS)
    vs = _load(v, block, S, WORDS)
    xs, rs = vs, vs
    if MOMENTS_ == 3:
        xs = _load(x, block, S, WORDS)
    if R > 0:
        rs = _load(remainder, block, R, WORDS)
    g = g[0] & zeros, g[1] & zeros, g[2] & zeros, g[3] & zeros
    _store(param, block, p, g, P, WORDS)
    _store(m, block, ms, g, S, WORDS)
    _store(v, block, vs, g, S, WORDS)
    if MOMENTS_ == 3:
        _store(x, block, xs, g, S, WORDS)
    if R > 0:
        _store(remainder, block, rs, g, R, WORDS)
    if SCALES_:
        _touch_scales(m_scale, block, zeros, WORDS)
        _touch_scales(v_scale, block, zeros, WORDS)


@triton.jit(do_not_specialize=["blocks", "zeros"])
def roofline_kernel(
    param,
    grad,
    m,
    v,
    x,
    remainder,
    m_scale,
    v_scale,
    blocks,
    zeros,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    MOMENTS_: tl.constexpr,
    SCALES_: tl.constexpr,
    WORDS: tl.constexpr,
    STAYS: tl.constexpr,
):
    """P, G, S, R: pieces per block, of as many as the narrowest stream has one. `zeros`: 0, unknown to the compiler."""
    streams = (param, grad, m, v, x, remainder, m_scale, v_scale)
    block = tl.program_id(0).to(tl.int64)
    if STAYS:
        while block < blocks:
            _touch(streams, block, zeros, P, G, S, R, MOMENTS_, SCALES_, WORDS)
            block += tl.num_programs(0)
    else:
        _touch(streams, block, zeros, P, G, S, R, MOMENTS_, SCALES_, WORDS)


def candidates(flat: dict[str, Tensor], mix: Mix, processors: int | None = None) -> dict[str, Callable[[], object]]:
    """Every form over these buffers, by name.

    Args:
        flat: one contiguous tensor per stream; a part of a block at the end is left out.
        mix: types of 1, 2 or 4 bytes.
        processors: multiprocessors of the device; default: ask it.
    """
    names = ["param", "grad", *(CODES if mix.eight_bit else MOMENTS[: mix.moments])]
    names += ["param"] * (5 - len(names)) + ["remainder" if mix.remainder else "param"]
    names += SCALES if mix.eight_bit else ("param", "param")
    words = [flat[name].view(torch.int32) for name in names]
    narrowest = 1 if mix.eight_bit else 2
    types = (mix.param, mix.grad, mix.state, mix.remainder)
    units = [dtype.itemsize // narrowest if dtype else 0 for dtype in types]
    if processors is None:
        processors = torch.cuda.get_device_properties(flat["param"].device).multi_processor_count
    forms: dict[str, Callable[[], object]] = {}
    for size, warps in _BLOCKS:
        blocks = max(1, flat["param"].numel() // (4 // narrowest * size))
        for resident in (None, *_RESIDENT):
            grid = blocks if resident is None else min(blocks, resident * processors)
            forms[f"{size} words, " + ("a program each" if resident is None else f"{resident} programs per SM")] = (
                lambda grid=grid, blocks=blocks, size=size, stays=resident is not None, warps=warps: roofline_kernel[
                    (grid,)
                ](*words, blocks, 0, *units, mix.moments, mix.eight_bit, size, stays, num_warps=warps)
            )
    return forms
