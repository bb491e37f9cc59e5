"""The schedules that `--schedule` names, as those of the library over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from greedylr_fused import WSD, AdaLRS, Climb, Constant, Cosine, GreedyLR, Linear, ReduceOnPlateau, Refined
from greedylr_fused.autolrs import AutoLRS
from greedylr_fused.schedules import LossSchedule, StepSchedule, refinement

from errors import UsageError

if TYPE_CHECKING:
    from config import Config

BASES = ("constant", "linear", "cosine", "wsd")
SEARCH = "autolrs"
LEVELS = {"climb": Climb, "adalrs": AdaLRS}  # searches of a level, on a linear schedule
NAMES = ("greedy", *BASES, "plateau", *LEVELS, SEARCH, *(f"greedy+{base}" for base in BASES))
HOST = ("greedy", *BASES, "plateau")  # what torch or transformers has too
FILE = "a file ending in .json that `python -m greedylr_fused refine` wrote"
RANGE = 10  # autolrs tries LRs from a tenth of --lr to ten times that: two decades, as in its authors' example
DECAY = 0.2  # of the run, for WSD: arXiv 2405.18392 advises a tenth to a fifth


def read(path: str) -> dict[str, Any]:
    """The options of a run that follows the schedule in a file. It is kept with them, so that a run can go on without
    the file, or beside another of its name.

    Raises:
        UsageError: there is none.
    """
    try:
        found = Refined.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--schedule {path}: {getattr(error, 'strerror', None) or error}") from None
    return dict(values=tuple(found.values), warmup_steps=found.warmup_steps, min_lr_ratio=found.min_lr_ratio)


def check_given(schedule: str, given: Mapping[str, Any]) -> None:
    """Refuse options that this schedule would not look at.

    Raises:
        UsageError: there is one.
    """
    step = schedule.rpartition("+")[2]
    loss_driven = schedule.startswith("greedy") or schedule == "plateau"
    of_no_use = {
        "factor": not loss_driven,
        "patience": not loss_driven,
        "warmup_steps": schedule in ("greedy", SEARCH),
        "decay_steps": step != "wsd",
        "min_lr_ratio": step in ("greedy", "constant", SEARCH),
        "trial_steps": schedule != SEARCH,
    }
    for name, refused in of_no_use.items():
        if refused and name in given:
            more = "; --schedule greedy+constant has a warm-up" if name == "warmup_steps" else ""
            raise UsageError(f"--{name.replace('_', '-')}: --schedule {schedule} has no use for it; leave it out{more}")


def check_baseline(config: Config) -> None:
    """Refuse a schedule that the baseline cannot follow.

    Raises:
        UsageError: neither torch nor transformers has it.
    """
    if config.searches and (config.optimizers != ("fused",) or config.record_norms):
        raise UsageError(
            f"--schedule {SEARCH}: it drives FusedAdamW alone, and its trials have no norms to record; leave out "
            "--optimizer, --compare and --record-norms"
        )
    if config.schedule in LEVELS and (config.optimizers == ("muon+fused",) or config.record_norms):
        raise UsageError(
            f"--schedule {config.schedule}: it puts back the parameters of FusedAdamW alone, and its trials have no "
            "norms to record; leave out --optimizer and --record-norms"
        )
    if config.record_norms and config.optimizers == ("muon+fused",):
        raise UsageError(f"--optimizer {config.optimizer}: FusedAdamW alone records norms; leave out --record-norms")
    if "torch" not in config.optimizers:
        return
    option = "--compare" if config.compare else "--optimizer torch"
    wrong = None
    if config.schedule not in HOST:
        wrong = f"--schedule {config.schedule}; write one of {', '.join(HOST)}"
    elif config.schedule == "linear" and config.min_lr_ratio:
        wrong = "a linear schedule with --min-lr-ratio; cosine and wsd may have one"
    elif config.schedule == "plateau" and config.warmup_steps:
        wrong = "plateau with --warmup-steps"
    if wrong:
        raise UsageError(
            f"{option}: the baseline takes torch's or transformers' schedulers, and there is none for {wrong}"
        )
    if config.record_norms and not config.compare:
        raise UsageError(f"{option}: it is FusedAdamW that records norms; leave out --record-norms")


def trial_steps(steps: int) -> int:
    """Steps of a trial: as many as let one stage fit, half of which are its ten trials, and the paper's 100 at most.

    Two shorter stages were worse: six losses foretold little (docs/choosing-a-schedule.md).
    """
    return max(4, min(100, steps // 20))


def search(config: Config) -> AutoLRS:
    """The search of a run of `config.steps` steps, trials included; the ratios of its lengths are the paper's.

    Raises:
        ValueError, TypeError: an option is out of range, or the run too short.
        ImportError: scipy or scikit-learn is missing.
    """
    tau = config.trial_steps
    if tau is not None and config.steps < 20 * tau:
        raise ValueError(f"--steps: expected {20 * tau} or more, a stage of --trial-steps {tau}, got {config.steps}")
    return AutoLRS(
        config.lr / RANGE,
        config.lr * RANGE,
        trial_steps=tau,  # type: ignore[arg-type]
        stage_steps=10 * tau,  # type: ignore[operator]
        max_stage_steps=80 * tau,  # type: ignore[operator]
        total_steps=config.steps,
        seed=config.seed,
    )


def build(config: Config) -> StepSchedule | LossSchedule | None:
    """The schedule of a run of `config.steps` steps; None where a search on the host decides.

    Raises:
        ValueError, TypeError: an option is out of range.
    """
    if config.searches:
        return None
    if config.values:
        return _refined(config)
    kind, _, base = config.schedule.partition("+")
    # Single losses are noisy, so means over a window are compared.
    by_loss: dict[str, Any] = dict(
        factor=config.factor, patience=config.patience, smooth=True, window_size=config.window
    )
    if kind == "greedy":
        below = _by_step(base, config) if base else None
        return GreedyLR(**by_loss, min_lr=0.1 * config.lr, max_lr=4 * config.lr, base=below)
    if kind == "plateau":
        below = _by_step("constant", config) if config.warmup_steps else None
        return ReduceOnPlateau(**by_loss, min_lr=config.min_lr_ratio * config.lr, base=below)
    if kind in LEVELS:
        return LEVELS[kind](base=_by_step("linear", config))
    return _by_step(kind, config)


def _by_step(name: str, config: Config) -> StepSchedule:
    steps, options = config.steps, dict[str, Any](warmup_steps=config.warmup_steps)
    if name == "constant":
        return Constant(**options)
    options["min_lr_ratio"] = config.min_lr_ratio
    if name == "wsd":
        decay = max(1, round(DECAY * steps)) if config.decay_steps is None else config.decay_steps
        return WSD(steps, decay_steps=decay, **options)
    return {"linear": Linear, "cosine": Cosine}[name](steps, **options)


def _refined(config: Config) -> Refined:
    """That of the file, stretched over the steps of this run."""
    steps = config.steps - config.warmup_steps
    if steps < 1:
        raise ValueError(f"--warmup-steps: expected less than --steps {config.steps}, got {config.warmup_steps}")
    values = refinement.resample(torch.tensor(config.values, dtype=torch.float64), steps).tolist()
    return Refined(values, warmup_steps=config.warmup_steps, min_lr_ratio=config.min_lr_ratio)


def label(config: Config) -> str:
    """What it is called, in pictures and tables."""
    schedule = config.lr_schedule
    if schedule is None:
        return AutoLRS.__name__
    base = schedule.base if isinstance(schedule, LossSchedule) else None
    return type(schedule).__name__ + (f" on {type(base).__name__}" if base else "")


def curve(config: Config) -> list[float]:
    """The LR of each step as a share of its peak, or of what the loss makes of that; the last one stays."""
    schedule = config.lr_schedule
    base = schedule.base if isinstance(schedule, LossSchedule) else schedule
    return [1.0] if base is None else list(base.curve())


def remark(config: Config, before: Config | None, done: int) -> str | None:
    """What is to be known of a schedule's length, in one line; None if there is nothing. That is of a search, and of
    a schedule of another length than it had.

    Args:
        config: the run's options.
        before: those that the checkpoint was written with; None for a new run.
        done: steps that it has gone.
    """
    if config.searches and before is None:
        tau = config.trial_steps
        return (
            f"{label(config)}: 10 trials of {tau} steps for the first {10 * tau} of training, doubling from stage to "
            f"stage; --steps {config.steps} has both; LRs from {config.lr / RANGE:g} to {config.lr * RANGE:g}"
        )
    if before is None:
        length = config.warmup_steps + len(config.values)
        if not config.values or length == config.steps:
            return None
        return f"{config.schedule}: made for {length} steps, and stretched over the {config.steps} of this run"
    curves = curve(before), curve(config)
    if curves[0] == curves[1]:
        return None
    was, now = (shares[min(done, len(shares) - 1)] for shares in curves)
    return (
        f"{label(config)} is now one of {config.steps} steps, not {before.steps}: after step {done} the LR is at "
        f"{now:.3g} of its peak, not {was:.3g}, and follows the new curve from there"
    )
