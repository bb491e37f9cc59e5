"""The baseline: `torch.optim.AdamW(fused=True)`, clipping, and GreedyLR on the host, as one writes it today."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from greedylr_fused import GreedyLR
from greedylr_fused.mirror import Metrics
from greedylr_fused.schedules.loss_spec import LossSpec
from torch import Tensor


class UnfusedAdamW:
    """The interface of `FusedAdamW`, around separate parts; `step` waits for the device to read the loss.

    GreedyLR is the plain-float form, which gives the same bits as `transformers.optimization.GreedyLR`.

    Args:
        groups: parameter groups.
        lr, betas, weight_decay: as in torch.
        schedule: options of GreedyLR.
        max_grad_norm: clip to this 2-norm.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        *,
        schedule: GreedyLR,
        max_grad_norm: float,
    ) -> None:
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self._greedy = LossSpec(schedule, [lr] * len(self._adamw.param_groups))
        self._parameters = [p for group in self._adamw.param_groups for p in group["params"]]
        self._max_grad_norm = max_grad_norm
        self._losses: list[Tensor] = []
        self._steps = 0
        self._loss = math.nan

    def observe(self, loss: Tensor) -> None:
        """Remember the loss of one micro-batch."""
        self._losses.append(loss)

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update, read the loss, let the schedule decide, write the LR."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._adamw.step()
        # In float64, as on the device, so that both optimizers give the same loss the same bits.
        self._loss = torch.stack(self._losses).double().mean().item()
        self._losses.clear()
        for group, lr in zip(self._adamw.param_groups, self._greedy.observe(self._loss), strict=True):
            group["lr"] = lr
        self._steps += 1

    def zero_grad(self) -> None:
        """Release the gradients."""
        self._adamw.zero_grad()

    def metrics(self) -> Metrics:
        """As `FusedAdamW.metrics()`; without the norm, which would be a second wait for the device."""
        window = self._greedy.window
        return Metrics(
            step=self._steps,
            lr=tuple(self._greedy.lr),
            loss=self._loss,
            smoothed_loss=window.sum / len(window) if window else self._loss,
            best=self._greedy.best,
            grad_norm=math.nan,
            grad_norm_l1=math.nan,
            skipped=0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on, as plain numbers and tensors."""
        greedy = {name: value for name, value in vars(self._greedy).items() if name != "config"}
        greedy |= {"window": list(self._greedy.window), "window_sum": self._greedy.window_sum}
        return {"adamw": self._adamw.state_dict(), "greedy": greedy, "steps": self._steps, "loss": self._loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._adamw.load_state_dict(state["adamw"])
        greedy = dict(state["greedy"])
        window = self._greedy.window
        window.clear()
        window.extend(greedy.pop("window"))
        window.sum = greedy.pop("window_sum")
        vars(self._greedy).update(greedy)
        self._steps, self._loss = state["steps"], state["loss"]
