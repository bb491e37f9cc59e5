"""The tuner's part of a control vector: its options, and the state of its learners, behind all else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from greedylr_fused.control.slots import SLOT
from greedylr_fused.schedules import Mechanic


class Tuned:
    """Where a tuner's values lie, and what they are; with None for a tuner there are none.

    Args:
        tuner: what scales the sum of all updates, or None.
        begin: index in the vector at which its values begin.

    Attributes:
        slots: the slots that the tuner fixes, and its scale before the first step.
        begin: as given; start: its values before the first step, [3 + 5 n] for n learners.
        vector: the control vector.
        last_shared: the last slot that ranks add up.
    """

    vector: Tensor

    def __init__(self, tuner: Mechanic | None, begin: int) -> None:
        self.tuner, self.begin = tuner, begin
        self.slots: dict[str, float] = {}
        self.start: list[float] = []
        self.last_shared = "found_inf"
        if tuner is not None:
            self.slots = {"tuner_begin": float(begin), "tuner_betas": float(len(tuner.betas))}
            self.slots |= {"tuner_scale": tuner.scale(tuner.start())}
            self.start = [*tuner.numbers(), *tuner.start()]
            self.last_shared = "param_moved_sum"

    @property
    def _learners(self) -> slice:
        assert self.tuner is not None
        return slice(self.begin + len(self.tuner.numbers()), self.begin + len(self.start))

    def learned(self) -> list[float]:
        """Return s, m, v and r of the learners, n each; nothing without a tuner. Waits for the device."""
        return [] if self.tuner is None else self.vector[self._learners].tolist()

    def load(self, values: Sequence[float]) -> None:
        """Write what `learned()` returned into the vector."""
        if self.tuner is not None:
            self.vector[self._learners].copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))
            self.vector[SLOT["tuner_scale"]] = self.tuner.scale(values)
