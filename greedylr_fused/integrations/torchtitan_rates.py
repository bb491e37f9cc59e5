"""torchtitan's container of learning-rate schedulers, for optimizers that decide the rate themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torchtitan.components.optimizer import LRSchedulersContainer

from greedylr_fused.integrations.shown_lr import ShownLR
from greedylr_fused.optimizer import FusedAdamW


class ShownLRsContainer(LRSchedulersContainer):  # type: ignore[misc]  # Any, where torchtitan is not installed
    """Shows what each FusedAdamW with a schedule has decided, and steps torchtitan's own curve for all others.

    A checkpoint of it holds the number of steps, as torchtitan's own, so that either loads the other's.

    Args:
        optimizers: those with a schedule.
        curve: torchtitan's container for the others; None if there are none.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):  # type: ignore[misc]
        """Options of the curve of the other optimizers, as torchtitan has them."""

        def build(self, *, optimizers: Iterable[Any], training_steps: int) -> ShownLRsContainer:
            """Return the container.

            Args:
                optimizers: a container of optimizers, or any number of them.
                training_steps: the length of the curve, if `total_steps` is None.
            """
            decided = [each for each in optimizers if isinstance(each, FusedAdamW) and each.schedule is not None]
            others = [each for each in optimizers if each not in decided]
            build = LRSchedulersContainer.Config.build
            curve = build(self, optimizers=others, training_steps=training_steps) if others else None
            return ShownLRsContainer(decided, curve)

    def __init__(self, optimizers: Iterable[FusedAdamW], curve: Any) -> None:
        self._decided = list(optimizers)
        self.schedulers = [*map(ShownLR, self._decided), *(curve or ())]

    def get_metrics(self) -> dict[str, float]:
        """Return the LR that the next step will use, under torchtitan's names, and of each FusedAdamW with a schedule
        loss, smoothed loss, best loss, norm and skipped steps of the last one, as "schedule/...". Never waits: on a
        GPU they may be of an earlier step.
        """
        found: dict[str, float] = {}
        for optimizer in self._decided:
            scalars = optimizer.metrics().scalars()  # which refreshes the LRs, too
            found |= {f"schedule/{name}": value for name, value in scalars.items() if name.partition("/")[0] != "lr"}
        rates: dict[str, float] = super().get_metrics()
        return rates | found
