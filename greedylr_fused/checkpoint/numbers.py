"""The schedule's numbers in a checkpoint, and checks that they are complete and agree.

They stand in every parameter group, the same in all but for the last three:

    "control": {
        "version": 1, "counted": 12.0, "kind": 1.0, "mode_max": 0.0, "step": 12.0, "skipped": 0.0, "loss": 3.5,
        "smoothed": 2.0625, "best": 1.125, "good": 0.0, "bad": 0.0, "cooldown_left": 1.0, "warmup_left": 0.0,
        "resets_left": 500.0, "forget_left": 0.0, "window_sum": 8.25, "decay_start": inf, "decay_steps": 0.0,
        "fraction": 1.0, "grad_norm": 3.23, "event": 2.0, "window": "0.75 1.5 2.5 3.5", "lr": 0.002,
        "initial_lr": 0.001, "level": 0.002
    }

Of a level search, kind 3 or 4, "window" has its own numbers (`SAVED_SEARCH`) in place of losses, as "phase=1.0 ...":
distributed checkpointing reads a file by the keys of the optimizer that loads, so that all kinds have the same. Within
a trial they say that one is open; the backup is not saved, and loading makes of them those of `control.without_trial`.

All checks raise TypeError or ValueError, and name the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greedylr_fused.checkpoint.checks import as_float, check_count, refuse
from greedylr_fused.control import SAVED, SAVED_BLOCKS, SAVED_SEARCH
from greedylr_fused.schedules import SEARCHES, Event, Kind, Phase
from greedylr_fused.warning import warn

KEY = "control"
#: Written under "version"; numbers without that key are of version 0.
VERSION = 1
_ANEW = f'load an earlier checkpoint, or delete "{KEY}" from every group to start the schedule anew from its LRs'
#: Names of the numbers that count something.
_COUNTS = (
    "step",
    "skipped",
    "good",
    "bad",
    "cooldown_left",
    "warmup_left",
    "resets_left",
    "forget_left",
    "decay_steps",
)
#: Where a checkpoint's key is not the slot's name: distributed checkpointing compares keys, so they stay.
_KEYS = {"curve_value": "fraction"}
_NAMES = {key: name for name, key in _KEYS.items()}
#: Numbers that a checkpoint from before there were step schedules lacks; its level was its LR.
_ADDED = {"forget_left": 0.0, "decay_start": math.inf, "decay_steps": 0.0, "curve_value": 1.0}


def saved(numbers: Sequence[dict[str, Any]], counted: float | None = None) -> list[dict[str, Any]]:
    """Return `Control.numbers()` as a checkpoint has them: the window as one text, with all bits of each number.

    Args:
        numbers: of each group.
        counted: the steps that the states have counted, kept to tell whether another optimizer trains on; None if the
            checkpoint has no states.
    """
    return [
        {"version": VERSION}
        | ({} if counted is None else {"counted": counted})
        | {_key(name): value for name, value in group_numbers.items() if name not in SAVED_SEARCH}
        | {"window": _text(group_numbers)}
        for group_numbers in numbers
    ]


def _text(numbers: Mapping[str, Any]) -> str:
    if numbers["kind"] in SEARCHES:
        return " ".join(f"{name}={numbers[name]!r}" for name in SAVED_SEARCH)
    return " ".join(map(repr, numbers["window"]))


def _with_search(where: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a level search with those of its text beside them, and no losses."""
    try:
        own = dict(pair.split("=") for pair in numbers["window"].split())
        return {**numbers, **{name: float(own[name]) for name in SAVED_SEARCH}, "window": ""}
    except (AttributeError, KeyError, ValueError):
        words = f'a text of "name=number" for {SAVED_SEARCH[0]} to {SAVED_SEARCH[-1]}'
        refuse(f'{where}["window"]', numbers["window"], words, _ANEW)


def _key(name: str) -> str:
    return _KEYS.get(name, name)


def read_control(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the control numbers of a state_dict's `param_groups`; None if it has none, as of another optimizer.

    Raises:
        TypeError, ValueError: the numbers are there but damaged; names the key.
    """
    given = [{} if group.get(KEY) is None else group[KEY] for group in groups]
    for index, group_numbers in enumerate(given):
        if not isinstance(group_numbers, Mapping):
            refuse(f'param_groups[{index}]["{KEY}"]', group_numbers, "a dictionary", _ANEW, TypeError)
    if not any(given):
        return None
    if any(group_numbers.get("grad_norms") for group_numbers in given):
        warn(
            "checkpoint: the gradient norms that an earlier version recorded in it are dropped; to go on recording, "
            'construct Recorder(opt, "run.jsonl", grad_norms=True)'
        )
    checked: list[dict[str, Any]] = []
    for index, group_numbers in enumerate(given):
        where = f'param_groups[{index}]["{KEY}"]'
        if group_numbers.get("version", 0) not in range(VERSION + 1):
            refuse(
                f'{where}["version"]',
                group_numbers["version"],
                f"at most {VERSION}",
                "update greedylr_fused, which is older",
            )
        if "version" not in group_numbers:
            group_numbers = {"event": 0.0, **group_numbers}
        group_numbers = {_NAMES.get(key, key): value for key, value in group_numbers.items()}
        if "lr" in group_numbers and "level" not in group_numbers and not _ADDED.keys() & group_numbers.keys():
            group_numbers = {**group_numbers, **_ADDED, "level": group_numbers["lr"]}
        for name in (*SAVED, *SAVED_BLOCKS, "window"):
            if name not in group_numbers:
                key = _key(name)
                raise ValueError(
                    f'checkpoint: {where}: expected what FusedAdamW.state_dict() wrote, got no "{key}" in it; {_ANEW}'
                )
        if group_numbers["kind"] in SEARCHES:
            group_numbers = _with_search(where, group_numbers)
        checked.append(_checked(where, group_numbers))
        for name in (*SAVED, "window", *_search_names(checked[0])):
            if repr(checked[-1].get(name)) != repr(checked[0][name]):  # NaN does not equal itself
                allowed = f"{checked[0][name]!r} as in group 0, since groups share it"
                refuse(f'{where}["{_key(name)}"]', checked[-1].get(name), allowed, _ANEW)
    return checked


def _search_names(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the numbers that only a level search has, none if these are not of one."""
    return SAVED_SEARCH if numbers.get("kind") in SEARCHES else ()


def _checked(where: str, group_numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Check the numbers of one group, and return them as floats."""
    names = (*SAVED, *SAVED_BLOCKS, *_search_names(group_numbers))
    numbers = {name: as_float(f'{where}["{_key(name)}"]', group_numbers[name]) for name in names}
    window = _losses(f'{where}["window"]', group_numbers["window"])
    for name in _COUNTS:
        check_count(f'{where}["{name}"]', numbers[name])
    for name, codes in (("kind", Kind), ("mode_max", range(2)), ("event", Event)):
        if numbers[name] not in tuple(codes):
            refuse(f'{where}["{name}"]', numbers[name], " or ".join(f"{code:d}" for code in codes), _ANEW)
    for name in (*SAVED_BLOCKS, "curve_value"):
        if not 0 <= numbers[name] < math.inf:
            refuse(f'{where}["{_key(name)}"]', numbers[name], "a finite number >= 0", _ANEW)
    start = numbers["decay_start"]
    if not (0 <= start <= numbers["step"] if numbers["decay_steps"] else start == math.inf):
        refuse(f'{where}["decay_start"]', start, 'inf if "decay_steps" is 0, otherwise a step up to "step"', _ANEW)
    worst = -math.inf if numbers["mode_max"] else math.inf
    if not math.isfinite(numbers["best"]) and numbers["best"] != worst:
        refuse(f'{where}["best"]', numbers["best"], f"a finite number, or {worst} before the first loss", _ANEW)
    _check_window(where, numbers, window)
    if _search_names(numbers):
        _check_search(where, numbers)
    counted = check_count(f'{where}["counted"]', group_numbers.get("counted", numbers["step"]))
    return numbers | {"window": window, "counted": counted}


def _check_search(where: str, numbers: Mapping[str, float]) -> None:
    """Check that the numbers of a level search are such as it can have."""
    allowed: dict[str, tuple[str, Callable[[float], bool]]] = {
        "phase": (" or ".join(f"{code:d}" for code in Phase), lambda x: x in tuple(Phase)),
        "again": ("0 or 1", lambda x: x in (0.0, 1.0)),
        "rising": ("0 or 1", lambda x: x in (0.0, 1.0)),
        "faded": ("0 < faded <= 1", lambda x: 0.0 < x <= 1.0),
        "multiplier": ("a finite number >= 0", lambda x: 0.0 <= x < math.inf),
        "worst_loss": ("a finite number, or -inf before the first loss", lambda x: x < math.inf),
        "kept": ("no infinite number", lambda x: not math.isinf(x)),
        "kept_var": ("a number >= 0, or NaN", lambda x: not x < 0.0),
        "gain": ("a finite number", math.isfinite),
        "gain_var": ("a number >= 0", lambda x: x >= 0.0),
    }
    allowed |= dict.fromkeys(("search_level", "trial_level"), ("a finite number > 0", lambda x: 0.0 < x < math.inf))
    allowed |= dict.fromkeys(("first_loss", "sum_y"), ("a finite number", math.isfinite))
    for name in ("window_step", "search_losses"):
        check_count(f'{where}["{name}"]', numbers[name])
    for name, (words, holds) in allowed.items():
        if not holds(numbers[name]):
            refuse(f'{where}["{name}"]', numbers[name], words, _ANEW)
    if numbers["search_losses"] > numbers["window_step"]:
        words = f'at most "window_step", {numbers["window_step"]:g}'
        refuse(f'{where}["search_losses"]', numbers["search_losses"], words, _ANEW)


def _losses(where: str, window: Any) -> list[float]:
    """Return the window of a checkpoint, given as a text, or as a list as earlier versions wrote it."""
    if isinstance(window, str):
        try:
            return [float(loss) for loss in window.split()]
        except ValueError:
            refuse(where, window, "a text of numbers with blanks between them", _ANEW)
    if not isinstance(window, (list, tuple)):
        refuse(where, window, "a text or list of numbers", _ANEW, TypeError)
    return [as_float(f"{where}[{i}]", loss) for i, loss in enumerate(window)]


def _check_window(where: str, numbers: Mapping[str, float], window: Sequence[float]) -> None:
    """Check that the window ends with the last loss, and that its sum gives the last mean: exactly, since both have the
    rounding of the running sum.
    """
    for i, loss in enumerate(window):
        if not math.isfinite(loss):
            refuse(f'{where}["window"][{i}]', loss, "a finite number", _ANEW)
    if not math.isfinite(numbers["window_sum"]):
        refuse(f'{where}["window_sum"]', numbers["window_sum"], "a finite number", _ANEW)
    if not window:
        return
    if numbers["window_sum"] / len(window) != numbers["smoothed"]:
        allowed = f'"smoothed" times the length of "window", {numbers["smoothed"]} * {len(window)}'
        refuse(f'{where}["window_sum"]', numbers["window_sum"], allowed, _ANEW)
    if math.isfinite(numbers["loss"]) and window[-1] != numbers["loss"]:
        refuse(f'{where}["window"][{len(window) - 1}]', window[-1], f'the last "loss", {numbers["loss"]}', _ANEW)
