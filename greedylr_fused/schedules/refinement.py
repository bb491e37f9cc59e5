"""Refinement: a schedule from the gradient norms of a finished run, without a dependency beyond torch.

Source: Defazio, Cutkosky, Mehta & Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement"
(arXiv 2310.07831). Their theory bounds the last iterate of SGD that steps by `w_t * sum_{p>t} w_p / sum_p w_p`, for any
weights `w_t >= 0`; the bound is least for `w_t` proportional to the squared inverse of the gradient's norm, and equal
norms give linear decay. For Adam they take the inverse of the L1 norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Optimizer: (column of the norms, name of the norm, exponent of the weight).
OPTIMIZERS = {"sgd": (0, "L2", -2), "adam": (1, "L1", -1)}
DEFAULT_TAU = 0.1
DEFAULT_FLOOR = 1e-3


def as_norms(norms: Any, optimizer: str) -> Tensor:
    """Return the norms that this optimizer's weights need, one per step: float64 [T] on the CPU.

    Args:
        norms: list, array or tensor; [T], or [T, 2] with L2 and L1 norms.
        optimizer: "adam" or "sgd".

    Raises:
        TypeError, ValueError: not numbers, another shape, negative, or another optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f'refinement: expected optimizer="adam" (AdamW too; L1 norms) or "sgd" (L2 norms), got {optimizer!r}; '
            'write optimizer="adam"'
        )
    column, name, _ = OPTIMIZERS[optimizer]
    try:
        given = norms if isinstance(norms, Tensor) else torch.as_tensor(norms, device="cpu")
        found = given.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"refinement: expected a list, array or tensor of one {name} norm per step, or of both, [steps, 2], got "
            f"norms that are not numbers ({error}); pass numbers"
        ) from None
    if found.dim() == 2 and found.shape[1] == 2:
        found = found[:, column]
    if found.dim() != 1:
        raise ValueError(
            "refinement: expected norms of shape [steps], or [steps, 2] with L2 and L1 norms, got shape "
            f"{tuple(found.shape)}; pass one of both, a row per step"
        )
    if bool((found < 0).any()):
        step = int((found < 0).nonzero()[0])
        raise ValueError(
            f"refinement: expected norms >= 0, got {found[step].item()} at step {step}; pass norms, not their "
            "logarithms or differences"
        )
    return found


def filter_width(n_norms: int, tau: float) -> int:
    """Return the width of the median filter in steps, odd: about `tau` of all, 1 (no filter) below two."""
    return 2 * (int(tau * n_norms) // 2) + 1


def median_filter(values: Tensor, width: int) -> Tensor:
    """Return the median over a window around each value; a wider window takes no longer.

    Before the start the first value is repeated; beyond the end values are mirrored, the last one not repeated. So the
    authors' code pads, https://github.com/facebookresearch/adaptive_scheduling.

    Args:
        values: float64 [T] on the CPU, all finite.
        width: odd, at most 2 T - 1.

    Returns:
        float64 [T].
    """
    half = width // 2
    n = len(values)
    padded = torch.cat([values[:1].expand(half), values, values[n - 1 - half : n - 1].flip(0)])
    order = padded.argsort(stable=True)
    by_rank = padded[order].tolist()
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device="cpu")).tolist()
    # A mark for every rank in the window, and how many marks lie below the median's rank: as the window moves on by one
    # the median moves by at most two marks, which `find` reaches at the speed of memory.
    marks = bytearray(len(ranks))
    for rank in ranks[:width]:
        marks[rank] = 1
    median = sorted(ranks[:width])[half]
    below, medians = half, [by_rank[median]]
    for old, new in zip(ranks, ranks[width:], strict=False):
        marks[old], marks[new] = 0, 1
        below += (new < median) - (old < median)
        while below > half:
            median = marks.rfind(1, 0, median)
            below -= 1
        while below < half or not marks[median]:
            below += marks[median]
            median = marks.find(1, median + 1)
        medians.append(by_rank[median])
    return torch.tensor(medians, dtype=torch.float64, device="cpu")


def smoothed(norms: Tensor, tau: float) -> Tensor:
    """Return the finite norms, after the median filter.

    Raises:
        ValueError: fewer than two are finite, or all are zero.
    """
    finite = norms[norms.isfinite()]
    if len(finite) < 2:
        raise ValueError(
            f"refinement: expected 2 or more finite gradient norms, got {len(finite)} of {len(norms)}; record those of "
            "a whole run, by Recorder(opt, path, grad_norms=True)"
        )
    found = median_filter(finite, filter_width(len(finite), tau))
    if not bool(found.any()):
        raise ValueError(
            "refinement: expected the norms of a run with gradients, got ones of which most are 0 wherever one looks; "
            "record the norms of a run that trained"
        )
    return found


def refine(norms: Tensor, *, optimizer: str, tau: float, floor: float) -> Tensor:
    """Return the refined schedule: the learning rate as a ratio of its peak, one value per finite norm, the last one 0.

    Args:
        norms: float64 [T], as `as_norms` returns them.
        optimizer: "adam" or "sgd": which power of the norm is the weight.
        tau: width of the median filter as a share of all steps.
        floor: norms below this share of their median (of those above 0) count as that much.
    """
    found = smoothed(norms, tau)
    found = (found / found[found > 0].median()).clamp(min=floor)  # in units of the median: no power overflows
    weights = found ** OPTIMIZERS[optimizer][2]
    after = weights.flip(0).cumsum(0).flip(0)[1:]
    schedule = weights * torch.cat([after, after.new_zeros(1)])
    return schedule / schedule.max()


def resample(schedule: Tensor, n_steps: int) -> Tensor:
    """Return the same shape over another number of steps: interpolated linearly, first on first and last on last step,
    with a peak of 1 again.
    """
    n = len(schedule)
    if n == n_steps:
        return schedule
    at = torch.arange(n_steps, dtype=torch.float64, device="cpu") * (n - 1) / max(1, n_steps - 1)
    left = at.long().clamp(max=n - 2)
    found = torch.lerp(schedule[left], schedule[left + 1], at - left)
    return found / found.max()
