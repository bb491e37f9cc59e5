"""The warning that a run skips all its steps, which otherwise shows only as a loss that does not move."""

from __future__ import annotations

from greedylr_fused.control import Control
from greedylr_fused.step.mirror import Mirror
from greedylr_fused.warning import warn

#: Skipped steps in a row that are warned of.
LIMIT = 10
#: One look in so many snapshots, so that looks cost little.
_EVERY = 5


class Skips:
    """One warning when `LIMIT` steps in a row were skipped for their gradients.

    Args:
        control: of an optimizer with or without `skip_nonfinite`. Steps that a gradient scaler skips do not count,
            since it skips some until it has found a scale.
        mirror: snapshots of the control.
    """

    def __init__(self, control: Control, mirror: Mirror) -> None:
        self._control, self._mirror = control, mirror
        self._due = _EVERY if control.skips_nonfinite else 0
        self._step, self._skipped = mirror.counts

    def look(self) -> None:
        """Count a snapshot that has arrived, and look at every `_EVERY`-th."""
        if self._due == 0:
            return
        self._due -= 1
        if self._due:
            return
        self._due = _EVERY
        step, skipped = self._mirror.counts
        if step != self._step or self._control.scaled:
            self._step, self._skipped = step, skipped
        elif skipped - self._skipped >= LIMIT:
            self._due = 0
            warn(
                f"FusedAdamW: {skipped - self._skipped:.0f} steps in a row were skipped, since each had a NaN or "
                "infinite gradient; find its source with torch.autograd.set_detect_anomaly(True), or pass "
                "skip_nonfinite=False to let it through"
            )
