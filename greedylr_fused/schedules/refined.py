"""Refined: a schedule made of the gradient norms of a finished run, kept as numbers in a file.

Source: Defazio, Cutkosky, Mehta & Mishchenko (arXiv 2310.07831); the arithmetic is in `refinement.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greedylr_fused.schedules import checks, refinement
from greedylr_fused.schedules.table import Table
from greedylr_fused.version import __version__

_ENTRIES = {"schedule", "warmup_steps", "min_lr_ratio", "provenance", "values"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Refined(Table):
    """The shape that an earlier run's gradients call for: high where they are small, towards zero at the end.

    It is made by `from_norms`, or by the command `python -m greedylr_fused refine` from the `run.jsonl` that
    `telemetry.Recorder(opt, path, grad_norms=True)` wrote. Equal norms give linear decay. Only the shape is
    transferred: the peak is the LR of the new run's optimizer, to be tuned as for any schedule.

    Before choosing it: the theory assumes convex losses, and weights that do not depend on the gradient they weigh;
    and the run that records costs as much as the run that profits. Where the norms collapse at the end (a training set
    learned by heart), the schedule has its peak there; then take `Linear`.

    Args:
        values: as in `Table`; `from_norms` makes them, with the peak 1 and 0 at the last step.
        warmup_steps: as in `Table`, before the values. Default: 0; norms of a run from its first step on bring a
            warm-up of their own, since early gradients are large.
        min_lr_ratio: as in `Table`.
        provenance: where the values come from, as JSON can hold it, for `save`; no part of comparisons.

    Raises:
        ValueError, TypeError: as in `Table`.
    """

    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_norms(
        cls,
        norms: Any,
        *,
        optimizer: str = "adam",
        total_steps: int | None = None,
        tau: float = refinement.DEFAULT_TAU,
        floor: float = refinement.DEFAULT_FLOOR,
        warmup_steps: int = 0,
        min_lr_ratio: float = 0.0,
        source: str = "",
    ) -> Refined:
        """Make the refined schedule of a run: drop what is not finite, filter by medians, weigh, divide by the peak.

        Args:
            norms: of the gradients before clipping, one per step of a whole run: list, array or tensor (one on a GPU
                is waited for). [T]: L1 norms for "adam", L2 norms for "sgd"; [T, 2]: L2 and L1, of which it takes one.
            optimizer: the kind that the schedule is for. "adam" (AdamW too): weights G^-1 of L1 norms; "sgd": G^-2 of
                L2 norms.
            total_steps: length of the new run in steps, warm-up included, from 2 to 2**25. Another number than that of
                the norms stretches the shape, interpolated linearly. Default None: as many as there are norms, those
                that are not finite included.
            tau: width of the median filter as a share of all steps, in [0, 1]. Default: 0.1, the authors'.
            floor: norms below this share of their median count as that much, in (0, 1]; one near zero would make the LR
                of all other steps vanish. Ours, not the authors'. Default: 1e-3, which ordinary norms do not reach, so
                that the schedule is theirs.
            warmup_steps: as in the class.
            min_lr_ratio: as in the class.
            source: where the norms come from, for `save`.

        Raises:
            TypeError, ValueError: an option is out of range, or no schedule follows from the norms: fewer than two
                finite ones, negative ones, all zero.
        """
        found = refinement.as_norms(norms, optimizer)
        for name, value, allowed, least in (("tau", tau, "[0, 1]", 0.0), ("floor", floor, "(0, 1]", math.ulp(0.0))):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 1.0:
                raise ValueError(f"Refined {name}: expected a number in {allowed}, got {value!r}; leave it out")
        schedule = refinement.refine(found, optimizer=optimizer, tau=float(tau), floor=float(floor))
        made = {"optimizer": optimizer, "tau": float(tau), "floor": float(floor), "norms": len(found), "source": source}
        options: dict[str, Any] = dict(warmup_steps=warmup_steps, min_lr_ratio=min_lr_ratio, provenance=made)
        empty = cls(schedule.tolist(), **options)  # checks them
        n_steps = checks.whole(empty, "total_steps", least=2, value=len(found) if total_steps is None else total_steps)
        if n_steps - warmup_steps < 2:
            allowed = f"at most total_steps={n_steps} less 2, since that counts the warm-up too"
            checks.refuse(empty, "warmup_steps", warmup_steps, allowed, "shorten the warm-up")
        return cls(refinement.resample(schedule, n_steps - warmup_steps).tolist(), **options)

    def save(self, path: str | Path) -> None:
        """Write a file of JSON: all bits of the values, and where they come from (norms, tau, optimizer, version)."""
        kept = {
            "schedule": type(self).__name__,
            "warmup_steps": self.warmup_steps,
            "min_lr_ratio": self.min_lr_ratio,
            "provenance": {"version": f"greedylr_fused {__version__}"} | dict(self.provenance),
            "values": self.values,
        }
        Path(path).write_text(json.dumps(kept, allow_nan=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Refined:
        """Read what `save` wrote.

        Raises:
            OSError: no such file.
            ValueError: the file is something else, or damaged; says what is wrong.
        """
        try:
            kept = json.loads(Path(path).read_text())
            if not isinstance(kept, dict) or kept.get("schedule") != cls.__name__:
                raise ValueError(f'no "schedule": "{cls.__name__}" in it')
            if wrong := _ENTRIES ^ kept.keys():
                raise ValueError(f"entries too many or missing: {', '.join(sorted(wrong))}")
            if not isinstance(kept["provenance"], dict) or not isinstance(kept["values"], list):
                raise ValueError('no dictionary as "provenance", or no list as "values"')
            del kept["schedule"]
            return cls(kept.pop("values"), **kept)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a file that Refined.save() or `python -m greedylr_fused refine` wrote, unchanged, "
                f"got another ({error}); make it anew"
            ) from None
