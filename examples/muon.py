"""Muon for the matrices of the blocks, FusedAdamW for the rest, under one schedule: a DeviceSchedule over both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from greedylr_fused import DeviceSchedule, FusedAdamW, Muon
from greedylr_fused.step.mirror import Metrics
from torch import Tensor


class MuonAndFused:
    """The interface of `FusedAdamW`, around two optimizers. The host waits for nothing.

    Args:
        groups: parameter groups, with a weight decay each.
        hidden: the parameters for Muon, matrices; its updates are scaled to the size of AdamW's (arXiv 2502.16982), so
            that both have one LR.
        lr, betas, weight_decay: as in torch.
        schedule: decides the LR of both.
        max_grad_norm: clip to this 2-norm of all gradients, of both.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        hidden: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        *,
        schedule: Any,
        max_grad_norm: float,
    ) -> None:
        groups, hidden = list(groups), list(hidden)
        chosen = set(hidden)
        rest = [group | {"params": [p for p in group["params"] if p not in chosen]} for group in groups]
        shared = torch.tensor(lr, device=hidden[0].device)  # DeviceSchedule makes one of each group
        muon = Muon(hidden, lr=shared, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = FusedAdamW(rest, lr=shared, betas=betas, weight_decay=weight_decay)
        self.optimizers = muon, adamw
        self.schedule = DeviceSchedule(self.optimizers, schedule)
        self._parameters = [p for group in groups for p in group["params"]]
        self._max_grad_norm = max_grad_norm

    def observe(self, loss: Tensor) -> None:
        """Add the loss of one micro-batch."""
        self.schedule.observe(loss)

    def step(self) -> None:
        """Clip by one norm, update, and let the schedule write both LRs."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.schedule.step()

    def zero_grad(self) -> None:
        """Release the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def metrics(self) -> Metrics:
        """As `FusedAdamW.metrics()`, without the norm, which stays with `clip_grad_norm_`."""
        return self.schedule.metrics()
