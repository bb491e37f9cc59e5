"""Ways to find a learning rate, or to forgive a wrong one, that are more than a schedule with an LR tuned for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.schedules import BASES, SCHEDULES, Context, Make
from greedylr_fused import Mechanic, SkipSpikes


@dataclass(frozen=True)
class Finder:
    """What is trained with, and at which LR.

    Attributes:
        about: in a line.
        lr: the schedule whose tuned LR it is given, or the LR that is its own; times the factor of a run.
        make: its schedule; None: AutoLRS sets the LR, see `benchmarks.evidence.searched`.
        options: of FusedAdamW, made anew for each run.
    """

    about: str
    lr: str | float
    make: Make | None
    options: Callable[[], dict[str, Any]] = field(default=dict)


def _skipping() -> dict[str, Any]:
    return {"skip_spikes": SkipSpikes()}


FINDERS: dict[str, Finder] = {
    "mechanic-linear": Finder(
        "`Linear` with `tuner=Mechanic()`; its LR is 1, and its factor is of that",
        1.0,
        BASES["linear"],
        lambda: {"tuner": Mechanic()},
    ),
    "autolrs": Finder(
        "`AutoLRS` after a warm-up of 5%, in as many stages as fit into the steps that all have; it searches from a "
        "tenth to ten times of the LR tuned for `linear`, times the factor",
        "linear",
        None,
    ),
    **{
        f"{name} skip-spikes": Finder(f"{name} with `skip_spikes=SkipSpikes()`", name, SCHEDULES[name], _skipping)
        for name in ("linear", "greedy-wsd")
    },
}


def lr_of(name: str) -> str | float:
    """The schedule whose tuned LR a schedule or finder has, or the LR that is its own."""
    return FINDERS[name].lr if name in FINDERS else name.split()[0]


def schedule_of(name: str, run: Context) -> Any:
    """The schedule of a run; None where AutoLRS sets the LR."""
    make = FINDERS[name].make if name in FINDERS else SCHEDULES[name]
    return None if make is None else make(run)


def options_of(name: str) -> dict[str, Any]:
    """Of FusedAdamW, besides those of the task."""
    return FINDERS[name].options() if name in FINDERS else {}
