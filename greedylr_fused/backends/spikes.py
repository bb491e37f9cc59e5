"""Skipping of spikes in plain torch operations, every branch a select (K1-K4), for the backend `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from greedylr_fused.control import SLOT
from greedylr_fused.schedules import LANES


class Spikes:
    """The two rings of a control vector, and the rule of `greedylr_fused.schedules.spikes` over them.

    Args:
        vector: the control vector.
        size: of each ring, 0 for none.
        end: index behind the rings, of which that of losses comes before that of norms.
    """

    def __init__(self, vector: Tensor, size: int, end: int) -> None:
        self._vector, self._size = vector, size
        self._losses, self._norms = vector[end - 2 * size : end].view(2, size).unbind()
        self._ages = torch.arange(size, device=vector.device)
        self.memory = [self._ages]

    def __getitem__(self, name: str) -> Tensor:
        return self._vector[SLOT[name]].clone()

    def _limit(self, ring: Tensor, count_name: str, head_name: str, sigmas: Tensor) -> Tensor:
        """Return the limit of the values in a ring; NaN, beyond which nothing is, if it has none."""
        count, head = self[count_name], self[head_name]
        oldest = torch.where(count < self._size, 0.0, head).to(torch.int64)
        held = self._ages < count
        values = ring.gather(0, (self._ages + oldest) % self._size)
        apart = torch.where(held, values - values[0], 0.0)
        mean = _total(apart) / count  # K1
        squares = _total(torch.where(held, (apart - mean).square(), 0.0))
        judges = (count >= self["spike_minimum"]) & (squares > 0)
        limit = values[0] + (mean + sigmas * torch.sqrt(squares / (count - 1)))  # K2
        return torch.where(judges, limit, torch.nan)

    def skip(self, norm: Tensor, skip: Tensor) -> Tensor:
        """Return whether a step is skipped, if so far it was (`skip`) or was not, and take its loss and its norm."""
        if self._size == 0:
            return skip
        sigmas, maximized = self["spike_sigmas"], self["mode_max"] != 0
        loss = torch.where(self["loss_weight"] != 0, self["loss_sum"] / self["loss_weight"], torch.nan)
        signed = torch.where(maximized, -sigmas, sigmas)
        loss_limit = self._limit(self._losses, "spike_losses", "losses_head", signed)
        norm_limit = self._limit(self._norms, "spike_norms", "norms_head", sigmas)
        beyond = torch.where(maximized, loss < loss_limit, loss > loss_limit)  # K3
        spike = (loss.isfinite() & beyond) | (norm.isfinite() & (norm > norm_limit))
        self._vector[SLOT["spikes"]].add_((spike & ~skip).double())
        self._enter(self._losses, "spike_losses", "losses_head", loss)
        self._enter(self._norms, "spike_norms", "norms_head", norm)
        return skip | spike

    def _enter(self, ring: Tensor, count_name: str, head_name: str, x: Tensor) -> None:
        """Put a finite value into a ring, that of a skipped step too, or a shift of level would skip for ever."""
        count, head = self[count_name], self[head_name]
        at, enters = head.to(torch.int64).reshape(1), x.isfinite()
        ring.scatter_(0, at, torch.where(enters, x, ring.gather(0, at)))  # K4
        self._vector[SLOT[head_name]].copy_(torch.where(enters, torch.remainder(head + 1, self._size), head))
        self._vector[SLOT[count_name]].copy_(torch.where(enters, torch.clamp(count + 1, max=self._size), count))


def _total(values: Tensor) -> Tensor:
    """Return the sum: every 32nd value in a row, and these sums in pairs of neighbours."""
    rows = torch.nn.functional.pad(values, (0, -values.numel() % LANES)).view(-1, LANES)
    lanes = rows[0]
    for row in rows[1:].unbind():
        lanes = lanes + row
    while lanes.numel() > 1:
        lanes = lanes[::2] + lanes[1::2]
    return lanes[0]
