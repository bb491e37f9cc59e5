"""The parameter groups that an optimizer's control vector was made for, and the vector for others.

As with torch's optimizers, `param_groups` may be assigned, grown, shrunk or put in another order between two steps.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from greedylr_fused.control import Control
from greedylr_fused.schedules import LossSchedule
from greedylr_fused.step import options


class Groups:
    """The groups as they were. A group is known again by its dictionary or, if that was replaced, by its parameters."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.then = list(groups)
        self._params = [list(group["params"]) for group in groups]

    def are(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether these are the same dictionaries in the same order."""
        return len(groups) == len(self.then) and all(map(operator.is_, groups, self.then))

    def regrouped(
        self, groups: Sequence[dict[str, Any]], control: Control, state_dtype: Any
    ) -> tuple[Control, dict[int, Any]]:
        """Return the control for these groups, and the LRs that stand in replaced dictionaries of known groups, by
        index: someone wrote those. A new group starts at its own LR. Waits for the device.

        Raises:
            RuntimeError: there is no group.
            KeyError, TypeError, ValueError: a new group lacks an option, or has one that is not allowed.
        """
        if not groups:
            raise RuntimeError(
                "FusedAdamW: got empty param_groups, allowed is at least one group; put one back, or step no longer"
            )
        sources = [self._source(group) for group in groups]
        written = {}
        for index, (group, source) in enumerate(zip(groups, sources, strict=True)):
            if source is None:
                _check_new(group, index, state_dtype, None)
            elif group["lr"] is not self.then[source]["lr"]:
                written[index] = group["lr"]
        lrs = [float(options.lr_of(group)) for group in groups]
        return control.regrouped(sources, lrs), written

    def _source(self, group: dict[str, Any]) -> int | None:
        """Return the index that a group had, None for a new one."""
        for index, then in enumerate(self.then):
            if group is then:
                return index
        return next((index for index, params in enumerate(self._params) if _same(group["params"], params)), None)


def check_last(groups: list[dict[str, Any]], state_dtype: Any = None, control: Control | None = None) -> None:
    """Check the group that joined last, and take it out again if it is not allowed.

    Args:
        groups: the last as torch has completed it.
        state_dtype: storage type of moments, None for the parameter's.
        control: of the groups before; None while an optimizer is constructed.

    Raises:
        TypeError, ValueError: an option is not allowed, or the schedule has no bounds for the LR.
    """
    try:
        _check_new(groups[-1], len(groups) - 1, state_dtype, control)
    except BaseException:
        groups.pop()
        raise


def _check_new(group: dict[str, Any], index: int, state_dtype: Any, control: Control | None) -> None:
    options.check_group(group, index)
    options.check_params(group["params"], state_dtype)
    if any(param.is_complex() for param in group["params"]):
        group["fused"] = False  # torch's own has no complex kernel
    if control is not None and isinstance(control.schedule, LossSchedule):
        control.schedule.check_groups(index + 1)
        control.schedule.bounds(float(options.lr_of(group)), index)


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))
