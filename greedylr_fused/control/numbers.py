"""The values of a control vector as plain numbers by name, for checkpoints and pickles, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from greedylr_fused.control.slots import (
    SAVED,
    SAVED_BLOCKS,
    SAVED_SEARCH,
    SLOT,
    SLOTS,
    STATE_BEGIN,
    TABLE,
    block,
    ring_begin,
)
from greedylr_fused.schedules import SEARCHES, Phase


def named(values: Sequence[float], n_groups: int, window_size: int) -> list[dict[str, Any]]:
    """Return one dictionary per group: the scalars named in `SAVED`, of a search those in `SAVED_SEARCH`, and `window`
    (oldest loss first), the same in each, and the group's own `lr`, `initial_lr` and `level`.
    """
    names = (*SAVED, *SAVED_SEARCH) if values[SLOT["kind"]] in SEARCHES else SAVED
    shared: dict[str, Any] = {name: values[SLOT[name]] for name in names}
    head, count = int(values[SLOT["window_head"]]), int(values[SLOT["window_count"]])
    ring = values[ring_begin(n_groups) :]
    window = [ring[(head - count + i) % window_size] for i in range(count)]
    own = {name: values[block(name, n_groups)] for name in SAVED_BLOCKS}
    return [
        shared | {"window": list(window)} | {name: own[name][group] for name in SAVED_BLOCKS}
        for group in range(n_groups)
    ]


def placed(
    groups: Sequence[dict[str, Any]],
    values: list[float],
    blocks: dict[str, list[float]],
    curve_value: float,
    window_size: int,
) -> list[float]:
    """Return the values with the numbers of `named` in them; a slot that these lack has its start value.

    Args:
        groups: the numbers, of at most `window_size` losses.
        values: those of a vector for as many groups; its configuration stays.
        blocks: the values of every block.
        curve_value: the one of the next step.
        window_size: the one of the vector.
    """
    first: dict[str, Any] = groups[0]
    values = list(values)
    values[STATE_BEGIN : len(SLOTS)] = [first.get(name, start or 0.0) for name, start, _ in TABLE[STATE_BEGIN:]]
    for name, numbers in blocks.items():
        values[block(name, len(groups))] = numbers
    window = first["window"]
    values[SLOT["curve_value"]] = curve_value
    values[SLOT["window_count"]] = float(len(window))
    values[SLOT["window_head"]] = float(len(window) % window_size if window_size else 0)
    ring = ring_begin(len(groups))
    values[ring : ring + len(window)] = window
    return values


def regrouped(
    known: Sequence[dict[str, Any]], sources: Sequence[int | None], lrs: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the numbers of other groups: each those of the group with its index in `sources` or, where that is None,
    of a new one that starts from its LR in `lrs`.
    """
    first = known[0]
    multiplier, curve_value = first.get("multiplier", 1.0), first["curve_value"]
    return [
        first | {"lr": lr * multiplier * curve_value, "initial_lr": lr, "level": lr * multiplier}
        if source is None
        else known[source]
        for source, lr in zip(sources, lrs, strict=True)
    ]


def without_trial(groups: Sequence[dict[str, Any]], *, other_windows: bool = False) -> list[dict[str, Any]]:
    """Return the numbers of `named` for parameters that were saved within the trial of a search, without its backup:
    the trial has no verdict, its steps are kept, and the search goes on at its level from the parameters as they are,
    which is right whatever was saved first, model or optimizer. With the next step Climb takes a backup and begins the
    same trial anew, if there is time for it; AdaLRS measures a window first. Without an open trial they are returned as
    they are.

    Args:
        groups: the numbers.
        other_windows: whether the search that goes on has other windows; then a control begins anew as well, and what
            was measured before counts no more, but that a first trial has spoken against the level.
    """
    opened = (Phase.TRIAL, Phase.CONTROL, Phase.WAIT) if other_windows else (Phase.TRIAL,)
    if groups[0].get("phase") not in opened:
        return list(groups)
    zeros = ("window_step", "search_losses", "first_loss", "sum_y", "sum_yy", "sum_xy")
    undone = {"phase": float(Phase.WAIT), "multiplier": groups[0]["search_level"]} | dict.fromkeys(zeros, 0.0)
    undone |= {"kept": math.nan, "kept_var": math.nan}
    undone |= dict.fromkeys(("gain", "gain_var", "rising"), 0.0) if other_windows else {}
    levels = [own["initial_lr"] * own["search_level"] for own in groups]
    return [
        own | undone | {"level": level, "lr": level * own["curve_value"]}
        for own, level in zip(groups, levels, strict=True)
    ]
