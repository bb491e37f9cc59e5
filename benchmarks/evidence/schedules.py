"""The schedules under test by name, and the variants of GreedyLR that its defaults are chosen from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from greedylr_fused import GreedyLR, schedules

WARM_UP = 0.05  # share of the run; the same for all that have a warm-up
WSD_DECAY = 0.2  # share of the run
FORGET = 500  # observations; the code of arXiv 2512.14527's runs of large models, see GreedyLR's `forget_every`
SMOOTH: dict[str, Any] = {"smooth": True, "window_size": 50}


@dataclass(frozen=True)
class Context:
    """What a schedule may depend on besides the peak LR.

    Attributes:
        steps: of the run.
        norms: L1 norm of the gradients of each step of a run with `linear` at its best LR, for `refined`.
    """

    steps: int
    norms: Sequence[float] | None = None

    @property
    def warmup(self) -> int:
        """Steps."""
        return max(1, round(WARM_UP * self.steps))


Make = Callable[[Context], Any]


def _step(name: str, **options: Any) -> Make:
    """A schedule of the step alone, with the warm-up that all share."""
    kind = getattr(schedules, name)
    return lambda run: kind(run.steps, warmup_steps=run.warmup, **options)


def _constant(run: Context) -> Any:
    return schedules.Constant(warmup_steps=run.warmup)


def _wsd(run: Context) -> Any:
    return schedules.WSD(run.steps, warmup_steps=run.warmup, decay_steps=round(WSD_DECAY * run.steps))


def _refined(run: Context) -> Any:
    """As the authors do: the first norms, which are large, give it a warm-up of its own; the common one besides."""
    if run.norms is None:
        raise ValueError("refined: expected the norms of a finished run of linear, got none; run that first")
    return schedules.Refined.from_norms(run.norms, total_steps=run.steps, warmup_steps=run.warmup)


def _plateau(run: Context) -> Any:
    """In torch's use an observation is all data seen once; here it is a step, and needs more patience and smoothing."""
    return schedules.ReduceOnPlateau(factor=0.5, patience=50, base=_constant(run), **SMOOTH)


def greedy(base: Make | None = None, **options: Any) -> Make:
    """GreedyLR on a step schedule, or free; an option may depend on the run."""

    def made(run: Context) -> Any:
        own = {name: value(run) if callable(value) else value for name, value in options.items()}
        return GreedyLR(base=base(run) if base else None, **own)

    return made


_LINEAR, _COSINE = _step("Linear"), _step("Cosine")
BASES: dict[str, Make] = {"constant": _constant, "linear": _LINEAR, "cosine": _COSINE, "wsd": _wsd}

STEP: dict[str, Make] = {
    "constant": _constant,
    "linear": _LINEAR,
    "polynomial": _step("Polynomial", power=2.0),
    "cosine": _COSINE,
    "restarts": _step("CosineRestarts", num_cycles=3),
    "wsd": _wsd,
    "rex": _step("REX"),
    "uba-0.5": _step("UBA", phi=0.5),
    "uba-1": _step("UBA", phi=1.0),
    "uba-5": _step("UBA", phi=5.0),
    "onecycle": lambda run: schedules.OneCycle(run.steps),
    "refined": _refined,
}
LOSS_DRIVEN: dict[str, Make] = {
    "greedy-raw": greedy(smooth=False),
    "greedy-smooth": greedy(**SMOOTH),
    # Its bounds are the only absolute one (transformers' max_lr) and the paper's floor for small models.
    "greedy-paper": greedy(min_lr_ratio=0.1, max_lr=1.0, forget_every=FORGET, **SMOOTH),
    "greedy-previous": greedy(compare="previous", patience=0, threshold=0.0, eps=0.0, smooth=False),
    **{f"greedy-{name}": greedy(base, **SMOOTH) for name, base in BASES.items()},
    "plateau": _plateau,
}
ABOUT = {
    "constant": "`Constant`",
    "linear": "`Linear`",
    "polynomial": "`Polynomial(power=2)`",
    "cosine": "`Cosine`",
    "restarts": "`CosineRestarts(num_cycles=3)`",
    "wsd": f"`WSD`, decaying over the last {WSD_DECAY:.0%}",
    "rex": "`REX`",
    "uba-0.5": "`UBA(phi=0.5)`",
    "uba-1": "`UBA(phi=1)`",
    "uba-5": "`UBA(phi=5)`",
    "onecycle": "`OneCycle`, with its own warm-up of 30%",
    "refined": "`Refined` from the gradient norms of a run of `Linear`",
    "greedy-raw": "`GreedyLR(smooth=False)`: each single loss is compared; no warm-up",
    "greedy-smooth": "`GreedyLR(smooth=True, window_size=50)`; no warm-up",
    "greedy-paper": f"the same with `max_lr=1.0, forget_every={FORGET}`, as in the paper's own runs; no warm-up",
    "greedy-previous": 'the paper\'s Algorithm 1: `compare="previous", patience=0, smooth=False, ...`; no warm-up',
    "greedy-constant": "`GreedyLR(smooth=True, base=Constant)`: as greedy-smooth, with the warm-up",
    "greedy-linear": "`GreedyLR(smooth=True, base=Linear)`",
    "greedy-cosine": "`GreedyLR(smooth=True, base=Cosine)`",
    "greedy-wsd": "`GreedyLR(smooth=True, base=WSD)`",
    "plateau": "`ReduceOnPlateau(factor=0.5, patience=50, smooth=True, window_size=50, base=Constant)`",
}

BOUNDS = ((0.5, 2.0), (0.25, 4.0), (0.1, 1.0), (0.1, 3.0), (0.01, 3.0), (0.01, 10.0))
WINDOWS = (0, 10, 200)
FACTORS = (0.5, 0.8, 0.9, 0.99)
PATIENCES = (2, 5, 20, 50)
ABLATED = ("constant", "linear", "wsd")  # bases
#: When GreedyLR may first decide: at once, or only when its window has filled after the warm-up.
HOLDS: dict[str, Any] = {"0": 0, "window": lambda run: run.warmup + SMOOTH["window_size"]}


def _ablations() -> dict[str, Make]:
    """One option at a time differs from GreedyLR on each base; the name says which, and to what."""
    changes: dict[str, dict[str, Any]] = {}
    changes |= {f"bounds={low:g}..{high:g}": dict(min_lr_ratio=low, max_lr_ratio=high) for low, high in BOUNDS}
    changes |= {f"window={n}": dict(smooth=n > 0, window_size=max(1, n)) for n in WINDOWS}
    changes |= {f"factor={factor:g}": dict(factor=factor) for factor in FACTORS}
    changes |= {f"patience={patience}": dict(patience=patience) for patience in PATIENCES}
    changes |= {f"hold={name}": dict(hold=hold) for name, hold in HOLDS.items()}
    return {
        f"greedy-{base} {name}": greedy(BASES[base], **SMOOTH | change)
        for base in ABLATED
        for name, change in changes.items()
    }


ABLATIONS = _ablations()
SCHEDULES: dict[str, Make] = {**STEP, **LOSS_DRIVEN, **ABLATIONS}


@functools.cache
def ablations_of(base: str) -> tuple[str, ...]:
    """The variants of one of `ABLATED`."""
    return tuple(name for name in ABLATIONS if name.split()[0] == f"greedy-{base}")
