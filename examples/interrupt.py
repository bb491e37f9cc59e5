"""Ctrl-C and SIGTERM: a step is finished and saved before a run ends."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """Remembers SIGINT or SIGTERM; a second one acts at once. A context manager.

    Under torchrun further SIGTERMs are ignored: where a batch system sends one to every process, torchrun passes on its
    own, and kills in the end who takes too long.

    `received` is what came to this process, `signal` what all ranks have agreed to act on: 0 for none.
    """

    def __init__(self, launched: bool) -> None:
        self._launched = launched
        self.received = self.signal = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        if self._launched:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
