"""Ways to find a learning rate, or to forgive a wrong one, that are more than a schedule with an LR tuned for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.hosted import Always, Hosted, Paired, Undone
from benchmarks.evidence.schedules import BASES, SCHEDULES, Context, Make
from greedylr_fused import AdaLRS, Climb, Linear, Mechanic, SkipSpikes

LONG_WARM_UP = 0.12  # share of the run


@dataclass(frozen=True)
class Finder:
    """What is trained with, and at which LR.

    Attributes:
        about: in a line.
        lr: the schedule whose tuned LR it is given, or the LR that is its own; times the factor of a run.
        make: its schedule; None: AutoLRS sets the LR, see `benchmarks.evidence.searched`.
        options: of FusedAdamW, made anew for each run.
        hosted: how the host searches in place of the device, with the options of that schedule.
    """

    about: str
    lr: str | float
    make: Make | None
    options: Callable[[], dict[str, Any]] = field(default=dict)
    hosted: Hosted | None = None


def _on_linear(search: Callable[..., Any], **options: Any) -> Make:
    return lambda run: search(base=BASES["linear"](run), **options)


def _skipping() -> dict[str, Any]:
    return {"skip_spikes": SkipSpikes()}


def _corrected() -> dict[str, Any]:
    return {"corrected_weight_decay": True}


def _choice(about: str, hosted: Hosted | None = None, **options: Any) -> Finder:
    return Finder(about, "linear", _on_linear(AdaLRS, **options), hosted=hosted)


#: What the paper of AdaLRS leaves open, one choice at a time answered otherwise.
ADALRS_CHOICES = {
    "adalrs window=0.02": _choice("windows of half the length", window=0.02),
    "adalrs window=0.08": _choice("windows of twice the length", window=0.08),
    "adalrs z=1": _choice("half the error", z=1.0),
    "adalrs error=difference": _choice("the standard error of the difference of both slopes", z=2.0 * math.sqrt(2.0)),
    "adalrs z=4": _choice("twice the error", z=4.0),
    "adalrs trigger=always": _choice("a trial after each window, however fast it was", Hosted(Always)),
    "adalrs undecided=undone": _choice("a trial that is neither faster nor slower is put back", Hosted(Undone)),
}
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
    "climb": Finder("`Climb(base=Linear)`", "linear", _on_linear(Climb)),
    "adalrs": Finder("`AdaLRS(base=Linear)`", "linear", _on_linear(AdaLRS)),
    "linear-warm12": Finder(
        f"`Linear` with a warm-up of {LONG_WARM_UP:.0%} and no search: what a slow start alone does",
        "linear",
        lambda run: Linear(run.steps, warmup_steps=round(LONG_WARM_UP * run.steps)),
    ),
    "linear adamc": Finder(
        "`Linear` with `corrected_weight_decay=True` on all that decays", "linear", BASES["linear"], _corrected
    ),
    "climb replay": Finder(
        "`climb`, but a control has the batches of its trial; decided on the host",
        "linear",
        _on_linear(Climb),
        hosted=Hosted(replays=True),
    ),
    "climb paired": Finder(
        "`climb replay`, and the error is that of the differences of the two losses on each batch",
        "linear",
        _on_linear(Climb),
        hosted=Hosted(Paired, replays=True),
    ),
    **ADALRS_CHOICES,
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


def hosted(name: str) -> Hosted | None:
    """How the host searches; None where the device does, or nothing is searched."""
    return FINDERS[name].hosted if name in FINDERS else None
