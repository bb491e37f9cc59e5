"""Checks of a schedule's options: each message says what is expected, what was got and what to do.

A check reads the option of that name from a frozen dataclass, and names the schedule by its class.
"""

from __future__ import annotations

import dataclasses
import math
from numbers import Real
from typing import Any, NoReturn

#: Steps that a step schedule may span. Its table takes 8 bytes per step, so this is 256 MiB.
MAX_STEPS = 2**25

#: Stands for: read the value from the schedule.
OPTION: Any = object()


def refuse(schedule: object, name: str, got: object, allowed: str, remedy: str) -> NoReturn:
    """Raise the ValueError of an option outside its range."""
    raise ValueError(f"{type(schedule).__name__} {name}: expected {allowed}, got {_shown(got)}; {remedy}")


def mistype(schedule: object, name: str, got: object, allowed: str, remedy: str) -> NoReturn:
    """Raise the TypeError of an option of the wrong type."""
    raise TypeError(f"{type(schedule).__name__} {name}: expected {allowed}, got {_shown(got)}; {remedy}")


def _shown(got: object) -> str:
    """Return a value as a message shows it: of a configuration, which may have twenty options, the name alone."""
    return type(got).__name__ if dataclasses.is_dataclass(got) else repr(got)


def whole(schedule: object, name: str, *, least: int, most: int = MAX_STEPS, value: Any = OPTION) -> int:
    """Return the int option `name`, or `value`, an argument of a method; refuse it outside `[least, most]`."""
    got: Any = getattr(schedule, name) if value is OPTION else value
    if isinstance(got, bool) or not isinstance(got, int):
        number = isinstance(got, Real) and math.isfinite(got)  # one of numpy's, too
        nearest = round(min(max(float(got), least), most)) if number else least
        share = number and 0 < got < 1 and name.endswith("_steps")
        remedy = f"write {name}=int({got!r} * total), which counts steps, if it is a share" if share else ""
        mistype(schedule, name, got, "an int", remedy or f"write {name}={nearest}")
    if not least <= got <= most:
        bounds = f"a whole number from {least} to {most}"
        refuse(schedule, name, got, bounds, f"write {name}={least if got < least else most}")
    return got


def number(schedule: object, name: str, *, allowed: str, example: float, default: bool = True) -> float:
    """Return the number option `name`, kept as a Python float so that equal schedules have equal bits.

    Args:
        schedule: the frozen dataclass that has the option.
        name: of the option.
        allowed: the range, for instance "0 <= min_lr_ratio <= 1", for messages; the caller tests it.
        example: a value to suggest.
        default: whether the option may be left out.
    """
    got: Any = getattr(schedule, name)
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        mistype(schedule, name, got, f"a number ({allowed})", f"write {name}={example:g}")
    if not math.isfinite(got):
        remedy = f"leave {name} out for its default" if default else f"write {name}={example:g}"
        refuse(schedule, name, got, f"a finite number ({allowed})", remedy)
    object.__setattr__(schedule, name, float(got))
    return float(got)


def choice(schedule: object, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse an option that is none of the words allowed."""
    got = getattr(schedule, name)
    if got not in allowed:
        words = " or ".join(f'"{word}"' for word in allowed)
        refuse(schedule, name, got, words, f'write {name}="{allowed[0]}"')
