"""Functions of the Triton kernels, called on their own."""

import torch
import triton
import triton.language as tl

from greedylr_fused.backends.triton.eight_bit import fraction, fraction_sq


@triton.jit
def _fractions(random, u, u_sq, N: tl.constexpr):
    at = tl.arange(0, N)
    bits = tl.load(random + at).to(tl.uint32)
    tl.store(u + at, fraction(bits))
    tl.store(u_sq + at, fraction_sq(bits))


def fractions(random: torch.Tensor) -> list[torch.Tensor]:
    """What rounds the codes of both moments, of random bits (int64, a power of two of them)."""
    found = [torch.empty(random.shape, device=random.device) for _ in range(2)]
    _fractions[(1,)](random, *found, random.numel())
    return found
