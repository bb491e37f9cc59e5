"""Moments in 8 bits: codes of the fourth root, with a float32 scale for each group of 64, rounded stochastically.

A group is 64 consecutive elements of a row (dimension 0; the others flattened). Its scales are the largest |exp_avg|
and the largest sqrt(exp_avg_sq) of the new values; a code is the fourth root of a value's share in that, times 127 or
255. By the fourth root a code reaches down to 2e-10 of the scale, which no tiny gradient and no outlier leaves.
Rounding to nearest would hold an average still whose steps are below half a code: the fraction decides at random.

The random numbers are a hash of the element's index in the whole parameter, the parameter's number and its step count:
the same in a replayed graph, after a resume and on any number of ranks. `csrc/core/eight_bit.h` and the Triton kernels
compute the same; on CPUs the bits are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Elements of a group.
GROUP = 64
#: Largest codes of exp_avg and of sqrt(exp_avg_sq).
LARGEST, LARGEST_SQ = 127, 255
#: A scale below this, the smallest normal float32, has no reciprocal, and counts as 0.
SMALLEST_SCALE = 2.0**-126
_WORD = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """Return a 32-bit hash of 32-bit numbers, both int64: xor-shifts and multiplications, a bijection."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def randoms(index: Tensor, number: int, step: Tensor) -> Tensor:
    """Return 32 random bits for each element (int64): bits 0-7 for exp_avg, 8-15 for the parameter, 16-31 for
    exp_avg_sq, whose steps with beta2 = 0.999 are less than a 256th of a code.

    Args:
        index: of each element in the whole parameter, int64.
        number: of the parameter in `state_dict()`.
        step: the parameter's own step count, this step included, 0-d.
    """
    seed = mix((index >> 32) & _WORD) ^ number
    seed = mix(seed & _WORD) ^ step.to(torch.int64)
    return mix((index & _WORD) ^ mix(seed & _WORD))


def square_root(x: Tensor) -> Tensor:
    """Return the square root, rounded correctly: PyTorch's of float32 may err by a unit in the last place on CPUs."""
    return x.double().sqrt().to(x.dtype)


def scales(x: Tensor) -> Tensor:
    """Return the scale of each group of a flat tensor of values >= 0 (NaN and inf are kept), [numel / 64]."""
    largest = x.view(-1, GROUP).amax(dim=1)
    return torch.where(largest < SMALLEST_SCALE, 0.0, largest)


def encode(x: Tensor, scale: Tensor, largest: int, u: Tensor | float) -> Tensor:
    """Return the codes of values >= 0, float32 of whole numbers in [0, largest].

    Args:
        x: float32 [n], flat.
        scale: float32 [n / 64], finite.
        largest: LARGEST or LARGEST_SQ.
        u: what is added before the fraction is dropped: in (0, 1) at random, 0.5 for rounding to nearest.
    """
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    share = x.view(-1, GROUP) * inverse[:, None]
    code = largest * square_root(square_root(share)).reshape(-1)
    return torch.floor(code + u).clamp(max=largest)


def decode(code: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return the values >= 0 of float32 codes [n] with scales [n / 64]."""
    t = code * (1.0 / largest)
    t = t * t
    return ((t * t).view(-1, GROUP) * scale[:, None]).reshape(-1)


def decode_moments(q: Tensor, q_sq: Tensor, scale: Tensor, scale_sq: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp_avg and exp_avg_sq, float32 and flat; exp_avg is 0 where exp_avg_sq is.

    Args:
        q: codes of exp_avg, int8 [n], flat.
        q_sq: of sqrt(exp_avg_sq), uint8 [n], flat.
        scale: of each group of exp_avg, float32 [n / 64].
        scale_sq: of sqrt(exp_avg_sq), likewise.
    """
    code = q.float()
    magnitude = decode(code.abs(), scale, LARGEST)
    exp_avg = torch.where(q_sq == 0, 0.0, torch.where(code < 0, -magnitude, magnitude))
    root = decode(q_sq.float(), scale_sq, LARGEST_SQ)
    return exp_avg, root * root


def encode_moments(exp_avg: Tensor, exp_avg_sq: Tensor, bits: Tensor | None) -> tuple[Tensor, ...]:
    """Return codes and scales, as `decode_moments` takes them; those of a group that holds a NaN or an infinity mean
    nothing (see `finite_groups`).

    Args:
        exp_avg: float32 [n], flat.
        exp_avg_sq: likewise, >= 0.
        bits: what `randoms` returns; None to round to nearest.
    """
    u: Tensor | float = 0.5
    u_sq: Tensor | float = 0.5
    if bits is not None:
        u = ((bits & 0xFF).float() + 0.5) / 256
        u_sq = ((bits >> 16).float() + 0.5) / 65536
    root = square_root(exp_avg_sq)
    scale, scale_sq = scales(exp_avg.abs()), scales(root)
    code = torch.copysign(encode(exp_avg.abs(), scale, LARGEST, u), exp_avg)
    code_sq = encode(root, scale_sq, LARGEST_SQ, u_sq)
    seen = (root.view(-1, GROUP) > 0) & (scale_sq > 0)[:, None]
    code_sq = torch.where(seen.reshape(-1), code_sq.clamp(min=1), code_sq)
    return code.to(torch.int8), code_sq.to(torch.uint8), scale, scale_sq


def finite_groups(scale: Tensor, scale_sq: Tensor) -> Tensor:
    """Return which groups have finite scales: those of others are not stored."""
    return torch.isfinite(scale) & torch.isfinite(scale_sq)
