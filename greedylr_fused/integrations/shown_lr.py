"""A stand-in for a learning-rate scheduler: it decides nothing, and shows what the device decided."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from greedylr_fused.optimizer import FusedAdamW


class ShownLR(LRScheduler):
    """The learning rate of a FusedAdamW with a schedule, in the form of a `torch.optim.lr_scheduler`.

    torch's constructor is not called: it would wrap the optimizer's `step`, and write the LR.

    Args:
        optimizer: whose LR is shown.

    Attributes:
        base_lrs: starting learning rate, or peak, of each parameter group.
    """

    optimizer: FusedAdamW

    def __init__(self, optimizer: FusedAdamW) -> None:
        self.optimizer = optimizer
        self.base_lrs = self._starting()
        self.last_epoch, self._step_count = 0, 1  # torch's names, which accelerate and checkpoints know
        self._used: list[Any] | None = None

    def before_step(self) -> None:
        """Keep the LRs that the step about to run will use."""
        self.optimizer.metrics()  # takes over what has arrived since the last step
        self._used = self._shown()

    def _starting(self) -> list[Any]:
        return [group_numbers["initial_lr"] for group_numbers in self.optimizer._control.numbers()]

    def _shown(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[Any]:
        """Return the LRs that the last step used, one per parameter group; before the first, those that it will use.
        Never waits: on a GPU they may be of an earlier step.
        """
        return self._shown() if self._used is None else list(self._used)

    def get_lr(self) -> list[Any]:
        """Return the LRs in the parameter groups: as far as is known, those that the next step will use."""
        return self._shown()

    def step(self, *_: Any) -> None:
        """Count a step, as torch's schedulers do. The optimizer has decided already."""
        self.last_epoch += 1
        self._step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a LambdaLR saves, so that a run can go on without us, too. Waits for the device."""
        state: dict[str, Any] = {name: vars(self)[name] for name in ("base_lrs", "last_epoch", "_step_count")}
        return state | {"_last_lr": self.optimizer.read_lr(), "lr_lambdas": [None] * len(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the count of any torch scheduler. The LRs came back with the optimizer."""
        self.base_lrs = self._starting()
        self.last_epoch = state_dict.get("last_epoch", 0)
        self._step_count = state_dict.get("_step_count", self.last_epoch + 1)
        self._used = None
