"""Who wants to know of the steps of an optimizer: telemetry, which records each of them."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Is told in `_listeners` of FusedAdamW and DeviceSchedule. Nothing in it may wait for the device, or raise for
    what it finds.
    """

    def stepped(self) -> None:
        """A step was enqueued; what this enqueues comes after it, and a graph that is captured repeats both."""

    def replayed(self) -> None:
        """A captured graph was replayed, with what `stepped` enqueued in it. The host has some time."""

    def restarted(self) -> None:
        """The control vector may lie in other memory, and its step count may have been loaded."""
