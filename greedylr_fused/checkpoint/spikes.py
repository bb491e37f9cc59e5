"""The last losses and norms of SkipSpikes in a checkpoint, and their checks.

They stand in every parameter group, the same in each:

"spikes": {"skipped": 3.0, "spikes": 1.0, "losses": "2.5 2.25 2.375", "norms": "0.75 0.5 1.25"}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_fused.checkpoint.checks import check_count, refuse
from greedylr_fused.control import RINGS

SPIKES = "spikes"
_ANEW = f'load an earlier checkpoint, or delete "{SPIKES}" from every group to begin without values'


def saved_spikes(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `control.spikes_of` returned as a checkpoint has it: each ring as one text, oldest value first, with
    all bits.
    """
    return {**numbers, **{name: " ".join(map(repr, numbers[name])) for name, *_ in RINGS}}


def read_spikes(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers in a state_dict's `param_groups`; empty if it has none, as one from before, or of an optimizer
    without `skip_spikes`.

    Raises:
        TypeError, ValueError: the numbers are there but damaged; names the key.
    """
    given = [group.get(SPIKES) or {} for group in groups]
    if not any(given):
        return {}
    for index, numbers in enumerate(given):
        where = f'param_groups[{index}]["{SPIKES}"]'
        if not isinstance(numbers, Mapping):
            refuse(where, numbers, "a dictionary", _ANEW, TypeError)
        if numbers != given[0]:
            refuse(where, numbers, "the same as in group 0, since groups share it", _ANEW)
        for name in ("skipped", "spikes", *(name for name, *_ in RINGS)):
            if name not in numbers:
                refuse(where, numbers, f'what state_dict() wrote, "{name}" in it', _ANEW)
    where, first = f'param_groups[0]["{SPIKES}"]', given[0]
    found: dict[str, Any] = {name: _values(f'{where}["{name}"]', first[name]) for name, *_ in RINGS}
    found |= {name: check_count(f'{where}["{name}"]', first[name]) for name in ("skipped", "spikes")}
    if found["spikes"] > found["skipped"]:
        refuse(f'{where}["spikes"]', found["spikes"], f'at most "skipped", {found["skipped"]:g}', _ANEW)
    return found


def _values(where: str, text: Any) -> list[float]:
    """Return the values of a ring."""
    try:
        values = [float(value) for value in text.split()]
    except (AttributeError, ValueError):
        refuse(where, text, "a text of numbers with blanks between them", _ANEW)
    for value in values:
        if not math.isfinite(value):
            refuse(where, value, "finite numbers", _ANEW)
    return values
