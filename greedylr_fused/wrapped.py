"""Live parameter groups of an optimizer that another one wraps.

`torch.distributed.optim.ZeroRedundancyOptimizer` has parameter groups of its own. Before each step it copies all their
entries over those of the optimizer inside, and back after the step. So what stands in a group may be older than what
the optimizer has shown there since. Nor do its `state_dict` and `load_state_dict` call those of the optimizer inside.

The dictionary under "control" in a live group tells: it is an empty one, new at each change. A group that holds an
earlier one is an earlier copy, whose LR nobody has written. One that is not empty was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_fused.checkpoint.numbers import KEY

#: Beside the numbers in live groups: the LR that a wrapper holds for the exact one, which is behind it on a GPU.
MIRROR = "mirrored_lr"


class Stamps:
    """Marks the groups of an optimizer whose LR the device decides.

    Args:
        groups: the live parameter groups, with the LRs that they show.
        before: those of the same optimizer before its groups or its control vector were replaced.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], before: Stamps | None) -> None:
        for group in groups:
            self.changed(group)
        self._copied = [(group[KEY], group["lr"]) for group in groups]  # what a wrapper has
        self._own: list[Any] = []  # dictionaries that are not empty, and yet nothing new
        if before is not None:
            self._copied[: len(before._copied)] = before._copied[: len(groups)]
            self._own = before._own

    @staticmethod
    def changed(group: dict[str, Any]) -> None:
        """What the group shows was changed, by other means than the group: earlier copies of it are earlier ones."""
        group[KEY] = {}  # there from the start: distributed checkpointing loads the keys that it finds

    def stepped(self, groups: Sequence[dict[str, Any]]) -> None:
        """A step is over: a wrapper copies the groups as they are now."""
        for index, group in enumerate(groups):
            stamp, lr = self._copied[index]
            if group.get(KEY) is stamp and group["lr"] is lr and not stamp:
                continue  # as it was after the step before: nothing is there to be told from it
            self.changed(group)
            self._copied[index] = (group[KEY], group["lr"])
        self._own = []

    def outdated(self, index: int, group: Mapping[str, Any]) -> bool:
        """Whether the group is as it was after the last step, copied over what it has shown since."""
        stamp, lr = self._copied[index]
        return group["lr"] is lr and group.get(KEY) is stamp

    def loaded(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether somebody wrote the numbers of a checkpoint to the groups."""
        for group in groups:
            own = group.get(KEY)
            if own and not any(own is known for known in self._own):
                return True
        return False

    def adopted(self, copied: Sequence[tuple[Any, Any]]) -> None:
        """They have been taken over: what the groups held under "control" and "lr" is what a wrapper still has."""
        self._copied = list(copied)
        self._own = [stamp for stamp, _ in copied]

    def publish(self, groups: Sequence[Mapping[str, Any]], numbers: Sequence[Mapping[str, Any]]) -> None:
        """Put the control numbers where the `state_dict` of a wrapper finds them: until a step makes them outdated."""
        for index, (group, own) in enumerate(zip(groups, numbers, strict=True)):
            group[KEY].clear()
            group[KEY].update(own, **{MIRROR: self._copied[index][1]})
            self._own.append(group[KEY])
