"""Rows of a ring as the steps they are: in order, each once, with what was decided in it, and with what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from greedylr_fused.step.mirror import Metrics
from greedylr_fused.telemetry.decisions import State, event
from greedylr_fused.telemetry.ring import END, MARK


@dataclass(frozen=True)
class Step:
    """One call of `step()`."""

    number: int
    """Committed and skipped steps so far, this one included; it goes on where a checkpoint left it."""
    metrics: Metrics
    """As of this step; `metrics.lr` is what the next one uses."""
    skipped: bool
    """Whether it was, for a non-finite gradient; loss and LR in the metrics are then those of the step before."""
    event: str | None
    """What the loss decided in it: "raise", "cut" or "reset"; None for none of them."""
    lost: int
    """Steps before it, since the last that is known, of which there is no row."""

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """As `Metrics.scalars`; without the losses if it was skipped."""
        found = self.metrics.scalars()
        if self.skipped:
            del found["loss"]
            found.pop("smoothed_loss", None)
        return {prefix + name: value for name, value in found.items()}


class History:
    """Takes rows as they come.

    Args:
        schedule: what decides the LR.

    Attributes:
        lost_at_end: steps after the last one that is known, of which there is no row.
    """

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule
        self._last: State | None = None  # row or mark
        self._before_mark: State | None = None
        self._begins = False  # whether the last one is a mark
        self._overwritten = 0  # rows that are missing before the next
        self.lost_at_end = 0

    def take(self, overwritten: int, rows: Sequence[Sequence[float]]) -> Iterator[Step]:
        """The steps that these rows add.

        Args:
            overwritten: rows before these that nobody has seen.
            rows: in the order in which they were written.
        """
        self._overwritten += overwritten
        for row in rows:
            now = State(row)
            if now["skip"] == END:
                behind = 0 if self._last is None else max(0, now.number - self._last.number)
                self.lost_at_end, self._overwritten = self._overwritten or behind, 0
            elif now["skip"] == MARK:
                self._before_mark, self._last, self._begins = self._last, now, True
            elif not self._is_repeated(now):
                before = self._before(now)
                lost = self._overwritten or self._missing(now)
                self._last, self._begins, self._before_mark, self._overwritten = now, False, None, 0
                yield self._step(before, now, lost)

    def _is_repeated(self, now: State) -> bool:
        """Whether nothing was stepped since the last row."""
        return self._last is not None and not self._begins and now.number == self._last.number

    def _before(self, now: State) -> State | None:
        """The state that this step began with. Mostly that of the last row; a mark is none where it shows a checkpoint
        whose loading failed afterwards.
        """
        known = (self._last, self._before_mark)
        return next((state for state in known if state is not None and state.number + 1 == now.number), None)

    def _missing(self, now: State) -> int:
        """Steps that wrote no row, such as replays of a graph that was captured without a recorder."""
        if self._last is None or self._before(now) is not None:
            return 0
        return max(0, now.number - self._last.number - 1)

    def _step(self, before: State | None, now: State, lost: int) -> Step:
        decided = None if before is None else event(self._schedule, before, now)
        return Step(now.number, Metrics.of(now.shown), now["skip"] != 0, decided, lost)
