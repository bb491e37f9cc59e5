"""The tuner's numbers in a checkpoint, and checks that they are complete.

They stand in every parameter group, the same in all:

    "tuner": {"version": 1, "scale": 0.0213, "learned": "0.001 0.02 ..."}

"learned" is one text of s, m, v and r of each learner, with all bits; "scale" is the sum of s, for a reader. Options of
the tuner are not there: an optimizer keeps its own. All checks raise TypeError or ValueError, and name the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_fused.checkpoint.checks import refuse
from greedylr_fused.control import Control
from greedylr_fused.warning import warn

TUNER = "tuner"
#: Written under "version".
VERSION = 1
_ANEW = f'load an earlier checkpoint, or delete "{TUNER}" from every group to start the tuner anew'


def saved(control: Control) -> dict[str, Any]:
    """Return what a group has of the tuner: nothing without one. Waits for the device."""
    tuner = control.tuned.tuner
    if tuner is None:
        return {}
    learned = control.tuned.learned()
    numbers = {"version": VERSION, "scale": tuner.scale(learned), "learned": " ".join(map(repr, learned))}
    return {TUNER: numbers}


def has_numbers(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a state_dict's `param_groups` have numbers of a tuner; distributed checkpointing leaves an empty
    dictionary where a file has none.
    """
    return any(group.get(TUNER) for group in groups)


def read(loaded: Mapping[str, Any], control: Control) -> None:
    """Write the numbers of a checkpoint into a control that starts anew, if both have a tuner.

    Raises:
        TypeError, ValueError: the numbers are damaged, or those of another number of learners.
    """
    groups, tuner = loaded["param_groups"], control.tuned.tuner
    if not has_numbers(groups):
        return
    if tuner is None:
        warn(
            "checkpoint: it has a tuner, which scaled all updates, and this optimizer has none, so that its lr counts "
            "as it is; construct it with tuner=Mechanic(), or with an lr for training without"
        )
        return
    for index, group in enumerate(groups):
        where, numbers = f'param_groups[{index}]["{TUNER}"]', group.get(TUNER)
        if not isinstance(numbers, Mapping):
            refuse(where, numbers, "a dictionary", _ANEW, TypeError)
        if numbers.get("version") != VERSION:
            refuse(f'{where}["version"]', numbers.get("version"), str(VERSION), "update greedylr_fused, which is older")
        if numbers != groups[0][TUNER]:
            refuse(where, numbers, "the numbers of group 0, since groups share them", _ANEW)
    control.tuned.load(_learned(groups[0][TUNER], 4 * len(tuner.betas)))


def _learned(numbers: Mapping[str, Any], count: int) -> list[float]:
    where, text = f'param_groups[0]["{TUNER}"]["learned"]', numbers.get("learned")
    try:
        values = [float(word) for word in text.split()]  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        refuse(where, text, "a text of numbers with blanks between them", _ANEW)
    if len(values) != count:
        refuse(where, len(values), f"{count} numbers, four for each of the tuner's betas", "construct it with as many")
    if not all(map(math.isfinite, values)):
        refuse(where, text, "finite numbers", _ANEW)
    if min(values[: 3 * count // 4]) < 0:
        refuse(where, text, "s, m and v of 0 or more, which are its first three quarters", _ANEW)
    return values
