"""Checks of the optimizer's options: what is expected, what was got, what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.schedules import LOW_LR, LevelSearch, LossSchedule, Mechanic, SkipSpikes, StepSchedule
from greedylr_fused.tensors import CORRECTED
from greedylr_fused.warning import warn

#: How far rounding may bring a learning rate below zero, as a share of its starting value.
_ROUNDING = 1e-12
#: Modes under which tensors have no memory, or operations are recorded.
_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY
_mode = torch._C._get_dispatch_mode


def check_schedule(schedule: Any) -> None:
    """Refuse what is not a schedule.

    Raises:
        TypeError: names what it got.
    """
    if schedule is None or isinstance(schedule, (LossSchedule, StepSchedule)):
        return
    if isinstance(schedule, type) and issubclass(schedule, (LossSchedule, StepSchedule)):
        name = schedule.__name__
        raise TypeError(f"schedule: expected one of its objects, got the class {name}; write {name}(...)")
    kind = type(schedule)
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler) or kind.__name__ == "GreedyLR":
        raise TypeError(
            f"schedule: expected a schedule of greedylr_fused, got a {kind.__module__}.{kind.__name__}, which steps on "
            "the host; write from greedylr_fused import GreedyLR and schedule=GreedyLR(...), or pass schedule=None and "
            "drive the optimizer by the one you have"
        )
    raise TypeError(
        "schedule: expected a schedule of greedylr_fused, such as GreedyLR() or Cosine(total_steps=10_000), or None, "
        f"got {type(schedule).__name__}; a torch.optim.lr_scheduler drives the optimizer with schedule=None"
    )


def check_tuner(tuner: Any) -> None:
    """Refuse what is not a tuner.

    Raises:
        TypeError: names what it got.
    """
    if tuner is not None and not isinstance(tuner, Mechanic):
        raise TypeError(f"tuner: expected Mechanic() or None, got {tuner!r}; write tuner=Mechanic()")


def check_search(schedule: Any, tuner: Any) -> None:
    """Refuse a tuner beside a level search, whose trials would teach it what the search then undoes.

    Raises:
        ValueError: names both.
    """
    if tuner is not None and isinstance(schedule, LevelSearch):
        raise ValueError(
            f"tuner: expected None with {type(schedule).__name__}, since both look for the scale of the LR, got "
            f"{type(tuner).__name__}; leave out one of them: tuner=Mechanic() with schedule=Linear(...), say"
        )


def warn_of_low_lr(lrs: Sequence[float], *, tuned: bool, loaded: bool = False) -> None:
    """Warn of a base learning rate, one of these, that a tuner would first have to make up for."""
    if tuned and any(0 < lr < LOW_LR for lr in lrs):
        remedy = "write lr=1.0, and ratios of it in groups and schedule"
        if loaded:
            remedy = 'before loading delete "control" and "initial_lr" from its groups and write "lr": 1.0 there'
        warn(
            "tuner: expected a base lr of about 1, whose scale the tuner finds, got "
            f"{min(filter(None, lrs)):g}{' from the checkpoint' if loaded else ''}; {remedy}"
        )


def check_not_traced(what: str) -> None:
    """Refuse what follows operations instead of running them: it would not see the kernels, and leave tensors behind
    that have no memory.

    Args:
        what: is called.

    Raises:
        RuntimeError: names what follows.
    """
    follower = None
    if torch._C._get_tracing_state() is not None:
        follower = "torch.jit.trace"
    elif _mode(_FAKE) is not None or _mode(_PROXY) is not None:
        follower = "torch.export, make_fx or FakeTensorMode"
    if follower is not None:
        raise RuntimeError(
            f"{what}: expected a call that runs, got one within {follower}, which cannot follow kernels; export the "
            "model alone, compile by torch.compile, or estimate memory with torch.optim.AdamW, whose state is as large"
        )


def needs_loss(schedule: Any, skip_spikes: Any = None) -> bool:
    """Return whether the loss decides anything: in this schedule, or which steps are skipped as spikes."""
    return isinstance(schedule, LossSchedule) or skip_spikes is not None


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, Python's or numpy's, and neither a bool nor a tensor."""
    return isinstance(value, Real) and not isinstance(value, bool)


def lr_of(group: Mapping[str, Any]) -> Any:
    """Return the learning rate in a group, a number or a tensor; 0 for a number that a torch scheduler (which leaves
    "initial_lr" there) has brought below 0 by rounding, as LinearLR does at `end_factor=0`.
    """
    lr = group["lr"]
    if not isinstance(lr, float) or lr >= 0.0:  # as at nearly every step
        return lr
    return 0.0 if lr >= -_ROUNDING * float(group.get("initial_lr", 0.0)) else lr


def check_group(group: dict[str, Any], index: int) -> None:
    """Check the AdamW options of one parameter group, and make numbers of its betas and of arrays of one element.

    Raises:
        ValueError, TypeError: an option is out of range or of the wrong type; names the group.
    """

    def refuse(name: str, allowed: str, remedy: str) -> None:
        raise ValueError(f"{name} of parameter group {index}: expected {allowed}, got {group[name]!r}; {remedy}")

    for name in ("lr", "eps", "weight_decay"):
        shown = name == "lr" and isinstance(group[name], Tensor)  # the user's own tensor stays there
        if not shown and math.prod(getattr(group[name], "shape", (0,))) == 1:
            group[name] = group[name].item()
        if not shown and not is_number(group[name]):
            raise TypeError(
                f"{name} of parameter group {index}: expected a number, got {group[name]!r}; write {name}=1e-3 without "
                "quotes"
            )
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        refuse("lr", "a number or a tensor of one element", "pass one LR per parameter group")
    if not 0.0 <= float(lr_of(group)) < math.inf:
        refuse("lr", "a finite number >= 0", "write lr=3e-4")
    betas = group["betas"]
    pair = getattr(betas, "shape", None) == (2,) or (isinstance(betas, Sequence) and len(betas) == 2)
    if not pair or not all(is_number(b) or (isinstance(b, Tensor) and b.numel() == 1) for b in betas):
        refuse("betas", "a pair of numbers in [0, 1)", "write betas=(0.9, 0.999)")
    group["betas"] = betas = (float(betas[0]), float(betas[1]))
    if not all(0.0 <= beta < 1.0 for beta in betas):
        refuse("betas", "a pair of numbers in [0, 1)", "write betas=(0.9, 0.999)")
    for name in ("eps", "weight_decay"):
        if not 0.0 <= group[name] < math.inf:
            refuse(name, "a finite number >= 0", f"write {name}=0 to leave it out")
    _resolve_correction(group, refuse)
    if group.get("differentiable"):
        refuse("differentiable", "False", "differentiate through torch.optim.AdamW(differentiable=True) instead")


def _resolve_correction(group: dict[str, Any], refuse: Callable[[str, str, str], None]) -> None:
    """Write the peak LR for True in a group whose weight decay is to be corrected, and nothing where it is not."""
    asked = group.get(CORRECTED)
    if asked is None or asked is False:
        group.pop(CORRECTED, None)
        return
    if asked is True:
        if not float(lr_of(group)) > 0.0:
            refuse(CORRECTED, "a peak LR, where the group's lr is 0", f"write {CORRECTED}=3e-4, the LR at its highest")
        group[CORRECTED] = float(lr_of(group))
    elif not is_number(asked) or not 0.0 < asked < math.inf:
        refuse(CORRECTED, "True, False or a finite peak LR > 0", f"write {CORRECTED}=True for the group's lr")
    else:
        group[CORRECTED] = float(asked)


def skips_nonfinite(asked: bool | None, schedule: Any, *others: Any) -> bool:
    """Return what `skip_nonfinite` is: where it is None, whether other options have the gradients read anyway, or the
    schedule keeps trials whose last step no loss has judged.
    """
    reads = any(option is not None for option in others)
    return reads or getattr(schedule, "keeps_trials", False) if asked is None else asked


def check_extras(max_grad_norm: float | None, skip_nonfinite: bool | None, skip_spikes: Any) -> None:
    """Check the options that torch's AdamW does not have.

    Raises:
        ValueError: out of range.
        TypeError: not a SkipSpikes.
    """
    if skip_spikes is not None and not isinstance(skip_spikes, SkipSpikes):
        raise TypeError(
            f"skip_spikes: expected None or a SkipSpikes, got {skip_spikes!r}; write from greedylr_fused import "
            "SkipSpikes and skip_spikes=SkipSpikes()"
        )
    if max_grad_norm is not None and not (is_number(max_grad_norm) and 0.0 < max_grad_norm < math.inf):
        raise ValueError(
            f"max_grad_norm: expected None (no clipping) or a finite number > 0, got {max_grad_norm!r}; write 1.0"
        )
    if skip_nonfinite not in (None, True, False):
        raise ValueError(f"skip_nonfinite: expected True, False or None, got {skip_nonfinite!r}; leave it out")


def check_device(params: Sequence[Tensor]) -> torch.device | None:
    """Return the one device of all parameters; None if there are none.

    Raises:
        RuntimeError: several devices.
    """
    devices = {param.device for param in params}
    if len(devices) > 1:
        raise RuntimeError(
            f"FusedAdamW: expected parameters on one device, got ones on {', '.join(sorted(map(str, devices)))}; "
            "construct one FusedAdamW for the parameters of each device, all under DeviceSchedule([...], schedule): "
            "docs/choosing-a-schedule.md"
        )
    return next(iter(devices), None)


def check_ranks(process_group: Any, partitions: int | None) -> None:
    """Check the options that say how the work is divided among ranks.

    Raises:
        TypeError, ValueError: not a process group, or not a number of parts.
    """
    if process_group is not None and not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group: expected None (found from the parameters) or a group that this rank is in, got "
            f"{process_group!r}; pass one as torch.distributed.new_group() and DeviceMesh.get_group() return it"
        )
    if partitions is not None and (isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < 1):
        raise ValueError(
            "partitions: expected None or an integer >= 1, the number of parts that parameters are divided into beyond "
            f"what DTensor placements say, got {partitions!r}; leave it out unless they are"
        )


def check_outside_backward() -> None:
    """Refuse to read all gradients while they are being computed.

    Raises:
        RuntimeError: called from a hook of backward().
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "FusedAdamW.step(): expected a call after backward(), since max_grad_norm, skip_nonfinite, skip_spikes, "
            "tuner and Recorder(grad_norms=True) need all gradients, got one from a hook within backward(); call "
            "step() after it, or turn them off to step parameters one by one"
        )


def has_torch_scheduler(optimizer: Any) -> bool:
    """Return whether a torch scheduler was ever made for an optimizer: it leaves a wrapper of `step` in the object."""
    return "step" in vars(optimizer) and hasattr(optimizer.step, "_wrapped_by_lr_sched")


def warn_of_scheduler(optimizer: Any) -> None:
    """Warn, once, if a torch scheduler drives an optimizer whose schedule decides the LR."""
    if has_torch_scheduler(optimizer) and optimizer.schedule is not None and not vars(optimizer).get("_warned"):
        optimizer._warned = True
        warn(
            "a torch.optim.lr_scheduler writes the learning rate of a FusedAdamW whose "
            f"{type(optimizer.schedule).__name__} also decides it, and "
            "each overwrites the other; use one of them: drop the scheduler (a warm-up is warmup_steps= of ours, or "
            "GreedyLR(base=Constant(warmup_steps=...))), or pass schedule=None"
        )


def warn_of_frozen(groups: Sequence[dict[str, Any]], state: Mapping[Any, Any]) -> None:
    """Warn of a step that updates nothing: no parameter has a state, or can ever have a gradient."""
    if state:
        return
    params = [param for group in groups for param in group["params"]]
    if params and not any(param.requires_grad for param in params):  # some ranks of ZeroRedundancyOptimizer have none
        warn(
            f"FusedAdamW.step(): no parameter has a gradient, so nothing is updated: all {len(params)} are frozen "
            "(requires_grad=False); pass the parameters that are to be trained, or requires_grad_(True) those first"
        )
