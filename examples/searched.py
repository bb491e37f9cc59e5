"""The trials of a search in the picture of its run."""

from __future__ import annotations

import itertools
import math
from typing import Any

from record import Record


def draw(axes: Any, record: Record) -> None:
    """Shade the trials, which were undone; mark each LR where its trial ended, and the best of each stage.

    Args:
        axes: that of the losses first, that of the LRs last.
        record: of one run.
    """
    rows = [row for row in record.rows if "trial" in row]
    ended = [row for row in rows if "forecast" in row]
    best = [
        min(stage, key=lambda row: (row["forecast"], row["trial_lr"])) for _, stage in itertools.groupby(ended, _stage)
    ]
    for number, (tried, part) in enumerate(itertools.groupby(rows, lambda row: row["trial"] is not None)):
        steps = [row["step"] for row in part]
        for axis in axes if tried else ():
            label = "trials, undone" if number == 0 else None
            axis.axvspan(steps[0] - 0.5, steps[-1] + 0.5, color="0.9", linewidth=0, zorder=0, label=label)
    for marked, look in ((ended, dict(markerfacecolor="none", label="tried")), (best, dict(label="best forecast"))):
        places = [row["step"] for row in marked], [row["trial_lr"] for row in marked]
        axes[-1].plot(*places, "o", color="black", markersize=4, **look)
    losses = [row["loss"] for row in rows if row["trial"] is None and row["loss"] is not None]
    first = next((row["loss"] for row in rows if row["loss"] is not None), None)
    if losses and first is not None:  # trials that diverge would leave no room for the rest
        axes[0].set_ylim(0.95 * min(losses) / math.log(2), 1.1 * max(first, *losses) / math.log(2))


def _stage(row: dict[str, Any]) -> int:
    return int(row["stage"])
