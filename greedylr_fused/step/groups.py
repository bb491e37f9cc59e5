"""The parameter groups that an optimizer's control vector was made for, and the vector for others.

As with torch's optimizers, `param_groups` may be assigned, grown, shrunk or put in another order between two steps.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_fused.control import Control
from greedylr_fused.schedules import LossSchedule
from greedylr_fused.step import options, storage_options
from greedylr_fused.tensors import storage

#: Where torch's schedulers keep the LR that they multiply: OneCycleLR in the second, all others in the first.
PEAKS = ("initial_lr", "max_lr")


class Groups:
    """The groups as they were. A group is known again by its dictionary or, if that was replaced, by its parameters."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.then = list(groups)
        # Weak: a framework may empty the groups and put in other parameters, and the old ones are to go.
        self._params = [[weakref.ref(param) for param in group["params"]] for group in groups]

    def are(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether these are the same dictionaries in the same order."""
        return len(groups) == len(self.then) and all(map(operator.is_, groups, self.then))

    def regrouped(
        self, groups: Sequence[dict[str, Any]], control: Control, state_dtype: Any, state: Mapping[Any, Any]
    ) -> tuple[Control, dict[int, Any]]:
        """Return the control for these groups, and the LRs by index that stand in dictionaries which were replaced or
        come back: someone wrote those. A new group starts at its own LR; one of parameters that were here
        before, or have `state`, as after a split, where the dictionary shows that it started. Waits for the device.

        Raises:
            RuntimeError: there is no group, or the schedule has a bound for each.
            KeyError, TypeError, ValueError: a new group lacks an option, or has one that is not allowed.
        """
        if not groups:
            raise RuntimeError(
                "FusedAdamW: expected at least one group, got empty param_groups; put one back, or step no longer"
            )
        sources = self._sources(groups)
        schedule = control.schedule
        if any(isinstance(getattr(schedule, name, None), tuple) for name in ("min_lr", "max_lr")):
            if sources[: len(self.then)] != list(range(len(self.then))):
                raise RuntimeError(
                    "FusedAdamW: expected param_groups in their order, since each has bounds of its own in "
                    f"{type(schedule).__name__}, got others; give one number as min_lr and max_lr"
                )
        before = {id(param) for refs in self._params for param in (ref() for ref in refs) if param is not None}
        starts, written = [], {}
        for index, (group, source) in enumerate(zip(groups, sources, strict=True)):
            lr = options.lr_of(group)
            start = float(lr)
            if source is None:
                _check_new(group, index, state_dtype, None)
                storage.complete(group, state_dtype)
                storage_options.check_tuned(group, state_dtype, control.tuned.tuner)
                shown = started_at(group)
                if shown is not None and any(id(param) in before or param in state for param in group["params"]):
                    start, written[index] = shown, lr
            elif group["lr"] is not self.then[source]["lr"]:
                written[index] = lr
            starts.append(start)
        return control.regrouped(sources, starts), written

    def _sources(self, groups: Sequence[dict[str, Any]]) -> list[int | None]:
        """Return the index that each group had, None for a new one."""
        index_of = {id(group): index for index, group in enumerate(self.then)}
        sources = [index_of.get(id(group)) for group in groups]
        left = sorted(set(range(len(self.then))) - set(sources))
        for place, group in enumerate(groups):
            if sources[place] is None and group["params"]:
                found = next((index for index in left if _same(self._params[index], group["params"])), None)
                if found is not None:
                    sources[place] = found
                    left.remove(found)
        return sources


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
        if control is not None:
            storage.complete(groups[-1], state_dtype)
            storage_options.check_tuned(groups[-1], state_dtype, control.tuned.tuner)
    except BaseException:
        groups.pop()
        raise


def _check_new(group: dict[str, Any], index: int, state_dtype: Any, control: Control | None) -> None:
    options.check_group(group, index)
    storage_options.check_params(group, state_dtype)
    if any(param.is_complex() for param in group["params"]):
        group["fused"] = False  # torch's own has no complex kernel
    if control is not None and isinstance(control.schedule, LossSchedule):
        control.schedule.check_groups(index + 1)
        control.schedule.bounds(float(options.lr_of(group)), index)


def _same(refs: Sequence[weakref.ref[Any]], params: Sequence[Any]) -> bool:
    return len(refs) == len(params) and all(ref() is param for ref, param in zip(refs, params, strict=True))


def peaks(lr: float) -> dict[str, float]:
    """Return what a group shows of its starting LR under the names of `torch.optim.lr_scheduler`, so that distributed
    checkpointing, which reads a file by the keys of the optimizer that loads, reads what a scheduler left there.

    It shows the next number: so it can be told, in any copy, whether a file has replaced it.
    """
    return dict.fromkeys(PEAKS, math.nextafter(lr, math.inf))


def started_at(group: Mapping[str, Any]) -> float | None:
    """Return the LR for which `peaks` made what a group shows; None if something else did, or has replaced it.
    OneCycleLR, too, may leave equal peaks, and "min_lr" beside them.
    """
    shown = group.get(PEAKS[0])
    ours = isinstance(shown, float) and shown == group.get(PEAKS[1]) and "min_lr" not in group
    return math.nextafter(shown, -math.inf) if ours else None  # type: ignore[arg-type]
