"""The baseline: `torch.optim.AdamW(fused=True)`, clipping, and a scheduler on the host, as one writes it today."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from greedylr_fused.step.mirror import Metrics
from torch import Tensor

from host_schedules import host_schedule


class UnfusedAdamW:
    """The interface of `FusedAdamW`, around separate parts. If the loss drives the schedule, `step` waits for the
    device to read it; otherwise `metrics` does, for the record.

    Args:
        groups: parameter groups.
        lr, betas, weight_decay: as in torch.
        schedule: one of the library's; its form on the host is taken.
        max_grad_norm: clip to this 2-norm.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        *,
        schedule: Any,
        max_grad_norm: float,
    ) -> None:
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self._schedule = host_schedule(schedule, self._adamw)
        self._parameters = [p for group in self._adamw.param_groups for p in group["params"]]
        self._max_grad_norm = max_grad_norm
        self._losses: list[Tensor] = []
        self._steps = 0
        self._loss: Any = math.nan

    def observe(self, loss: Tensor) -> None:
        """Remember the loss of one micro-batch."""
        self._losses.append(loss)

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update, let the schedule write the LR, from the loss if that decides."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._adamw.step()
        # In float64, as on the device, so that both optimizers give the same loss the same bits.
        self._loss = torch.stack(self._losses).double().mean()
        self._losses.clear()
        if self._schedule.reads_loss:
            self._loss = self._loss.item()
        self._schedule.step(self._loss)
        self._steps += 1

    def zero_grad(self) -> None:
        """Release the gradients."""
        self._adamw.zero_grad()

    def metrics(self) -> Metrics:
        """As `FusedAdamW.metrics()`; without the norms, which would be a second wait for the device."""
        self._loss = float(self._loss)
        smoothed = self._schedule.smoothed
        return Metrics(
            step=self._steps,
            lr=tuple(group["lr"] for group in self._adamw.param_groups),
            loss=self._loss,
            smoothed_loss=self._loss if math.isnan(smoothed) else smoothed,
            best=self._schedule.best,
            grad_norm=math.nan,
            grad_norm_l1=math.nan,
            skipped=0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on, as plain numbers and tensors."""
        own = {"steps": self._steps, "loss": float(self._loss)}
        return own | {"adamw": self._adamw.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._adamw.load_state_dict(state["adamw"])
        # "greedy": as it was called when there was no other.
        self._schedule.load_state_dict(state["schedule"] if "schedule" in state else state["greedy"])
        self._steps, self._loss = state["steps"], state["loss"]
