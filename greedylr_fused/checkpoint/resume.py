"""Where a schedule goes on after loading: at the numbers of the checkpoint, fitted to this schedule, or anew.

A checkpoint of another optimizer has no numbers. Distributed checkpointing reads a file by the keys of the optimizer
that loads, and leaves that optimizer's own values where the file has none: numbers of a schedule that has not run, and
the peaks that `step.peaks` made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import checks, tuner
from greedylr_fused.checkpoint.numbers import KEY, read_control
from greedylr_fused.checkpoint.spikes import SPIKES, read_spikes
from greedylr_fused.checkpoint.states import check_states
from greedylr_fused.control import SEARCH_WINDOWS, Control, place_spikes, without_trial
from greedylr_fused.schedules import LevelSearch, Phase
from greedylr_fused.step import PEAKS, lr_of, peaks, started_at


def loaded_control(
    loaded: Mapping[str, Any], optimizer: Optimizer, control: Control, shown: Mapping[Tensor, Any]
) -> Control:
    """Return the control that a checkpoint describes, for an optimizer with this control that has shown these counts.

    Raises:
        TypeError, ValueError: not a checkpoint, or one that does not fit; nothing has been changed then.
    """
    checks.check_layout(loaded, optimizer.param_groups)
    check_states(loaded, optimizer.param_groups)
    try:
        result = _control_of(loaded, control, is_own=_is_own(loaded, optimizer, shown))
        place_spikes(result.vector, result.spike_window, read_spikes(loaded["param_groups"]))
        tuner.read(loaded, result)
        return result
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("checkpoint") else f"checkpoint: {error}") from None


def _control_of(loaded: Mapping[str, Any], control: Control, *, is_own: bool) -> Control:
    groups, counted = loaded["param_groups"], counted_in(loaded)
    numbers = read_control(groups)
    if numbers is not None and is_own:
        counted = numbers[0]["counted"]  # later steps counted on in its tensors
    if numbers is None or _has_not_run(numbers[0], counted):
        groups = [_of_scheduler(group) for group in groups]
        result = control.anew([_peak(group) if control.follows_steps else float(lr_of(group)) for group in groups])
        begins = control.follows_steps and not any("initial_lr" in group for group in groups)  # that LR was constant
        result.load(_at(0.0 if begins else counted, result.numbers(), control.schedule))
        return result
    check_decay(numbers[0], control)
    # Another optimizer that trained on counted in the states alone. A file from before this was kept has no number.
    step = numbers[0]["step"] + max(0.0, counted - (numbers[0]["counted"] or numbers[0]["step"]))
    curve_value = control.curve.value_at(step, numbers[0]["decay_start"], numbers[0]["decay_steps"])
    for group_numbers, group in zip(numbers, groups, strict=True):
        group_numbers["step"] = step
        # The group's LR is what people edit in a checkpoint; untouched, it is the schedule's own, or what an earlier
        # version showed of it within a ZeroRedundancyOptimizer.
        if group["lr"] not in (group_numbers["lr"], group[KEY].get("mirrored_lr")):
            group_numbers["lr"] = float(group["lr"])
            if curve_value and "search_level" in group_numbers:  # the starting LR moves, as by `Control.write_lr`
                group_numbers["initial_lr"] = group_numbers["lr"] / curve_value / group_numbers["multiplier"]
                group_numbers["level"] = group_numbers["initial_lr"] * group_numbers["multiplier"]
            elif curve_value:
                group_numbers["level"] = group_numbers["lr"] / curve_value
    numbers = fitted(numbers, control)
    result = control.anew([group_numbers["initial_lr"] for group_numbers in numbers])
    result.load(numbers)
    return result


def _at(step: float, numbers: Sequence[dict[str, Any]], schedule: Any) -> list[dict[str, Any]]:
    """Return the numbers of a schedule that starts anew at a step, when some or all of the warm-up of its base is over;
    a `hold` of its own is in observations, of which it has made none. A search for which that is too late is over.
    """
    over = step if getattr(schedule, "hold", None) is None else 0.0
    found = [own | {"step": step, "warmup_left": max(0.0, own["warmup_left"] - over)} for own in numbers]
    if not isinstance(schedule, LevelSearch) or schedule.has_room(int(step)):
        return found
    level = max(1.0, schedule.start)
    over_now = {"phase": float(Phase.FROZEN), "search_level": level, "multiplier": level}
    return [own | over_now | {"level": own["initial_lr"] * level} for own in found]


def _is_own(loaded: Mapping[str, Any], optimizer: Optimizer, shown: Mapping[Tensor, Any]) -> bool:
    """Return whether this is a dictionary that the optimizer itself returned, with step counts of its own, in which no
    file has replaced anything: later steps have counted on in it.

    Args:
        loaded: the checkpoint.
        optimizer: that loads it.
        shown: the step counts that it ever returned.
    """
    counts = [state.get("step") for state in loaded["state"].values() if isinstance(state, Mapping)]
    was_shown = any(isinstance(count, Tensor) and count in shown for count in counts)
    pairs = zip(loaded["param_groups"], optimizer.param_groups, strict=True)
    return was_shown and all(group["betas"] is live["betas"] for group, live in pairs)


def counted_in(checkpoint: Mapping[str, Any]) -> float:
    """Return the steps that the states of a checkpoint have counted, the most of any parameter."""
    names = [name for group in checkpoint["param_groups"] for name in group["params"]]
    states = [state for state in map(checkpoint["state"].get, names) if isinstance(state, Mapping)]
    counts = [state["step"] for state in states if "step" in state]
    by_kind: dict[Any, list[Tensor]] = {}
    for count in counts:
        if isinstance(count, Tensor):
            by_kind.setdefault((count.device, count.dtype, count.shape), []).append(count)
    numbers = [float(count) for count in counts if not isinstance(count, Tensor)]
    return max([*numbers, *(float(torch.stack(same).max()) for same in by_kind.values())], default=0.0)


def _has_not_run(first: Mapping[str, Any], counted: float) -> bool:
    """Return whether another optimizer took all the steps that the states have counted, so that the numbers are those
    of the optimizer that loads: distributed checkpointing leaves them where a file of torch's AdamW has none.
    """
    return bool(first["step"] == 0.0 and counted > first["counted"])


def _of_scheduler(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group without the peaks that no scheduler of torch has left there: those that distributed checkpointing
    found nothing for in its file and, where "control" was deleted, those of the schedule that is to start anew.
    """
    group_numbers = group.get(KEY) or {}
    ours = peaks(group_numbers["initial_lr"]) if group_numbers else peaks(started_at(group) or 0.0)
    return {name: value for name, value in group.items() if name not in PEAKS or value != ours[name]}


def _peak(group: Mapping[str, Any]) -> float:
    """Return the peak that a torch.optim.lr_scheduler left in a group: "max_lr" of OneCycleLR, which begins below it,
    otherwise "initial_lr". Without a scheduler the peak is the LR.
    """
    return float(group.get("max_lr", group["initial_lr"]) if "initial_lr" in group else group["lr"])


def check_decay(first: Mapping[str, Any], control: Control) -> None:
    """Refuse the numbers of a run in a late decay for which this schedule has no room."""
    if first["decay_steps"] > control.curve.decay_room:
        raise ValueError(
            f"checkpoint: expected a decay of at most {control.curve.decay_room} steps, for which this schedule has "
            f"room, got one of {first['decay_steps']:g} that start_decay() began; construct it with the WSD(...) of "
            f'the run that wrote it, or delete "{KEY}" from every group'
        )


def fitted(numbers: Sequence[dict[str, Any]], control: Control) -> list[dict[str, Any]]:
    """Return the numbers of another run as this schedule takes them.

    If that run had another kind of schedule, or a `base` that this one lacks, its decisions mean nothing here: the
    schedule starts anew from the LR (a step schedule from the level), and only the step counts, last loss and norm
    are kept. Of a longer window the newest losses are taken.

    Raises:
        ValueError: that run compared something else: another mode, or losses where this one compares means.
    """
    kind, mode_max = (float(control.slot(name)) for name in ("kind", "mode_max"))
    first = numbers[0]
    has_no_base = control.is_loss_driven and not control.follows_steps
    if first["kind"] != kind or (has_no_base and first["curve_value"] != 1.0):
        names = ("step", "skipped", "loss", "grad_norm", "decay_start", "decay_steps")
        kept = {name: first[name] for name in names}
        fresh = control.anew([_start(own, follows_steps=control.follows_steps) for own in numbers]).numbers()
        return [group_numbers | kept for group_numbers in _at(first["step"], fresh, control.schedule)]
    if control.searches:
        others = any(first[name] != float(control.slot(name)) for name in SEARCH_WINDOWS)
        return without_trial(numbers, other_windows=others)
    if kind and first["mode_max"] != mode_max:
        raise ValueError(
            f'checkpoint: expected mode="{"max" if mode_max else "min"}", as this schedule has it, got one written '
            f'with mode="{"min" if mode_max else "max"}"; construct it with the mode of the run that wrote it'
        )
    window, size = first["window"], control.window_size
    if window and not size or size and not window and math.isfinite(first["best"]):
        means, losses = "smooth=True", "smooth=False"
        raise ValueError(
            f"checkpoint: expected {losses if window else means}, as this schedule has it, got one written with "
            f'{means if window else losses}, whose best does not compare; construct it with the "smooth" of the run '
            f'that wrote it, or delete "{KEY}" from every group'
        )
    if len(window) <= size:
        return list(numbers)
    newest = window[-size:]
    total = math.fsum(newest)
    kept = {"window": newest, "window_sum": total, "smoothed": total / size}
    return [group_numbers | kept for group_numbers in numbers]


def _start(numbers: Mapping[str, Any], *, follows_steps: bool) -> float:
    """Return the LR from which another kind of schedule starts: of a search the level outside trials."""
    if "search_level" in numbers:
        level = numbers["initial_lr"] * numbers["search_level"]
        return float(level if follows_steps else level * numbers["curve_value"])
    return float(numbers["level" if follows_steps else "lr"])


def mark(groups: Sequence[dict[str, Any]], lrs: Sequence[float] | None, *, spikes: bool, tuned: bool) -> None:
    """Give live groups the keys that only checkpoints with a schedule, spikes or a tuner have, without their numbers:
    torch.distributed.checkpoint reads a flattened checkpoint by the keys of the live groups.

    Args:
        groups: the optimizer's.
        lrs: the starting LR of each group; None without a schedule.
        spikes: whether checkpoints have "spikes", too.
        tuned: whether there is a tuner.
    """
    for index, group in enumerate(groups):
        group.pop(SPIKES, None)
        group.pop(tuner.TUNER, None)
        if tuned:
            group[tuner.TUNER] = {}
        was_marked = group.pop(KEY, None) is not None
        if lrs is not None:
            for name in PEAKS:
                group.pop(name, None)  # the order of keys is always the same
            group |= peaks(lrs[index]) | {KEY: {}}
        elif was_marked and started_at(group) is not None:
            for name in PEAKS:
                del group[name]  # so that an "initial_lr" written later counts
        if spikes:
            group[SPIKES] = {}


def without_marks(shown: str, *, schedule: bool) -> str:
    """Return the repr of an optimizer without the keys that `mark` gives to its groups, with or without a schedule."""
    marks = (SPIKES, tuner.TUNER, *((KEY, *PEAKS) if schedule else ()))
    return re.sub(rf" +({'|'.join(marks)}): .*\n", "", shown)
