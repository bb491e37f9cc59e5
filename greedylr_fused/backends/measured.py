"""What the reference backend adds up of gradients and parameters, in float64 and in one order."""

from __future__ import annotations

import torch
from torch import Tensor

from greedylr_fused.backends.stored import loaded
from greedylr_fused.tensors import Hyper, TensorTable, real

#: Elements that are added up by one thread, whatever the number of threads.
_ROW = 16384


def sum_of(values: Tensor) -> Tensor:
    """Return the sum, bit-equal for any number of threads: torch divides a long sum among them, so rows of a length
    that it leaves to one thread are added up first.
    """
    values = values.reshape(-1)
    if values.numel() > _ROW:
        values = sum_of(torch.nn.functional.pad(values, (0, -values.numel() % _ROW)).view(-1, _ROW).sum(dim=1))
    return values.sum()


def moved_sums(table: TensorTable, eps: Tensor) -> list[Tensor]:
    """Return, of each tensor with a gradient, what a tuner needs: the sums of its squares, of gradient times direction
    and of parameter times direction, float64 [3], as far as this process contributes them. The direction is
    (x0 - x) / (S + eps), with the S that wrote the tensor last; a gradient that is to be followed counts negative.
    """
    found = []
    for i, entry in enumerate(table.entries):
        grad = table.gradient(i)
        if grad is None:
            continue
        *stored, offset = (real(t) for t in (entry.target, *map(entry.memory_of, entry.stored)))
        g, x, o = (t.to(torch.float64) for t in (grad, loaded(entry, stored)[0], offset))
        weight = table.norm_weight[i]
        direction = weight / (entry.written_at + eps)
        sign = torch.where(table.hyper[entry.group][Hyper.MAXIMIZE] != 0, -direction, direction)
        found.append(torch.stack([sum_of(x.square()) * weight, sum_of(g * o) * sign, sum_of(x * o) * direction]))
    return found
