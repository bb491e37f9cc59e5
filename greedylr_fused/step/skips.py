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
    """One warning when `LIMIT` steps in a row were skipped for their gradients, or as spikes.

    Args:
        control: of an optimizer with or without `skip_nonfinite` and `skip_spikes`. Steps that a gradient scaler skips
            do not count, since it skips some until it has found a scale.
        mirror: snapshots of the control.
    """

    def __init__(self, control: Control, mirror: Mirror) -> None:
        self._control, self._mirror = control, mirror
        self._due = _EVERY if control.skips_nonfinite or control.spike_window else 0
        self._step, self._skipped = mirror.counts
        self._spikes = mirror.slot("spikes")

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
            self._step, self._skipped, self._spikes = step, skipped, self._mirror.slot("spikes")
        elif skipped - self._skipped >= LIMIT:
            self._due = 0
            self._warn(skipped - self._skipped, self._mirror.slot("spikes") - self._spikes)

    def _warn(self, skipped: float, spikes: float) -> None:
        said = f"FusedAdamW: {skipped:.0f} steps in a row were skipped, "
        if 2 * spikes < skipped:
            warn(
                f"{said}since each had a NaN or infinite gradient; find its source with "
                "torch.autograd.set_detect_anomaly(True), or pass skip_nonfinite=False to let it through"
            )
        else:
            warn(
                f"{said}{spikes:.0f} of them as spikes: loss or gradient norm grows faster than SkipSpikes follows, as "
                "in a run that diverges; go back to a checkpoint, with a lower lr or a larger sigma_factor"
            )
