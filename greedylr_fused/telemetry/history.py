"""Steps made of a ring's rows: in order, each once, with the loss's decision, and the number of missing steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from greedylr_fused.control import BLOCKS, SLOT, SLOTS, STATE_BEGIN, block
from greedylr_fused.schedules import Event
from greedylr_fused.step import Metrics
from greedylr_fused.telemetry.ring import END, MARK

#: Values of `Step.event`, beside None; those behind "reset" are of level searches.
EVENTS = tuple(event.name.lower() for event in Event if event)
RAISE, CUT, RESET, TRY, BACK, FREEZE = EVENTS


@dataclass(frozen=True)
class Step:
    """One call of `step()`."""

    number: int
    """Committed and skipped steps so far, this one and those of a loaded checkpoint included."""
    metrics: Metrics
    """Snapshot after this step; `metrics.lr` is what the next one uses."""
    skipped: bool
    """Whether it was skipped, for a non-finite gradient or a spike; loss and LR in the metrics are then older."""
    event: str | None
    """Decision of the loss in this step: "raise", "cut" or "reset", of a level search also "try", "back" (a trial ended
    with the level as before) or "freeze"; None if there is none."""
    lost: int
    """Steps without a row between the last known one and this one."""

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Return `Metrics.scalars` of this step, without the losses if it was skipped."""
        found = self.metrics.scalars()
        if self.skipped:
            del found["loss"]
            found.pop("smoothed_loss", None)
        return {prefix + name: value for name, value in found.items()}


class Row:
    """A row of the ring, with its numbers by name.

    Args:
        values: the slots from `STATE_BEGIN` on, and all blocks of the groups.
    """

    __slots__ = ("_values", "number")

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values
        self.number = int(self["step"] + self["skipped"])

    def __getitem__(self, name: str) -> float:
        return self._values[SLOT[name] - STATE_BEGIN]

    @property
    def metrics(self) -> Metrics:
        scalars = len(SLOTS) - STATE_BEGIN
        rates = block("lr", (len(self._values) - scalars) // len(BLOCKS))
        return Metrics.of(self._values, self._values[rates.start - STATE_BEGIN : rates.stop - STATE_BEGIN])

    @property
    def event(self) -> str | None:
        event = Event(int(self["event"]))
        return event.name.lower() if event else None


class History:
    """Converter of rows, as they come, into steps.

    Attributes:
        lost_at_end: steps without a row after the last known one.
    """

    def __init__(self) -> None:
        self._last: int | None = None  # number of the last row or mark
        self._before_mark: int | None = None
        self._begins = False  # whether the last one is a mark
        self._overwritten = 0  # rows that are missing before the next
        self.lost_at_end = 0

    def add(self, overwritten: int, rows: Sequence[Sequence[float]]) -> Iterator[Step]:
        """Yield the steps that these rows add.

        Args:
            overwritten: number of rows before these that were overwritten unseen.
            rows: in the order in which they were written.
        """
        self._overwritten += overwritten
        for values in rows:
            row = Row(values)
            if row["skip"] == END:
                behind = 0 if self._last is None else max(0, row.number - self._last)
                self.lost_at_end, self._overwritten = self._overwritten or behind, 0
            elif row["skip"] == MARK:
                self._before_mark, self._last, self._begins = self._last, row.number, True
            elif self._begins or row.number != self._last:  # otherwise nothing was stepped since the last row
                lost = self._overwritten or self._missing(row.number)
                self._last, self._begins, self._before_mark, self._overwritten = row.number, False, None, 0
                yield Step(row.number, row.metrics, row["skip"] != 0, row.event, lost)

    def _missing(self, number: int) -> int:
        """Return how many steps wrote no row, such as replays of a graph captured without a recorder. A mark may be of
        a checkpoint whose loading failed afterwards: steps then go on from before it.
        """
        if self._last is None or number - 1 in (self._last, self._before_mark):
            return 0
        return max(0, number - self._last - 1)
