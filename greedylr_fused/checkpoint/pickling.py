"""Pickling and deep copies of an optimizer: control state as numbers, tables and mirrors built anew."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from greedylr_fused.control import Control, place_spikes, spikes_of, without_trial
from greedylr_fused.ranks import Ranks
from greedylr_fused.step import Engine

#: Key beside torch's own, for what engine and control are made of.
_MADE_OF = "_made_of"


def get_state(optimizer: Optimizer, control: Control, engine: Engine) -> dict[str, Any]:
    """Return plain numbers and tensors; a process group as its name, by which other processes know it, too."""
    ranks = engine.ranks
    made = {
        "backend": engine.name,
        "state_dtype": engine.state_dtype,
        "numbers": control.numbers(),
        "spikes": spikes_of(control.vector, control.spike_window),
        "learned": control.tuned.learned(),
        "pending": control.pending.tolist(),
        "observed": control.observed,
        "group": None if ranks.given is None else ranks.given.group_name,
        "partitions": ranks.partitions,
        "has_begun": engine.has_begun,
    }
    return Optimizer.__getstate__(optimizer) | {_MADE_OF: made}


def set_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Let torch take over what `get_state` of this version returned or, as torch's optimizers allow, a partial state.

    Returns:
        What `engine` and `fill` make engine and control of; None for a partial state.
    """
    Optimizer.__setstate__(optimizer, {key: value for key, value in state.items() if key != _MADE_OF})
    for group in optimizer.param_groups:
        for name in ("amsgrad", "maximize"):
            group.setdefault(name, False)
        group["decoupled_weight_decay"] = True
    if _MADE_OF not in state:
        return None
    optimizer.state = defaultdict(dict, optimizer.state)
    made: dict[str, Any] = state[_MADE_OF]
    return made


def engine(made: dict[str, Any], device: torch.device, *, needs_loss: bool, tuned: bool) -> Engine:
    """Return the engine for a copy.

    Args:
        made: what `set_state` returned.
        device: of the parameters.
        needs_loss: whether the loss decides anything.
        tuned: whether there is a tuner.

    Raises:
        RuntimeError: the process group that the original was constructed with does not exist here.
    """
    ranks = Ranks(_group_named(made["group"]), made["partitions"], needs_loss=needs_loss)
    found = Engine(made["backend"], device, made["state_dtype"], ranks, tuned=tuned)
    found.has_begun = made["has_begun"]
    return found


def starting_lrs(made: dict[str, Any]) -> list[float]:
    """Return the starting LR of each group, for a control that `fill` then fills."""
    return [group_numbers["initial_lr"] for group_numbers in made["numbers"]]


def fill(control: Control, made: dict[str, Any]) -> None:
    """Give the control of a copy the state of the original's."""
    control.load(without_trial(made["numbers"]))
    place_spikes(control.vector, control.spike_window, made["spikes"])
    control.tuned.load(made["learned"])
    control.restore_decay()
    control.pending.copy_(torch.tensor(made["pending"], dtype=torch.float64, device="cpu"))
    control.observed = made["observed"]


def _group_named(name: str | None) -> Any:
    if name is None:
        return None
    try:
        from torch.distributed import distributed_c10d as c10d

        return c10d._resolve_process_group(name)  # type: ignore[arg-type]
    except Exception as error:
        raise RuntimeError(
            f"FusedAdamW: expected the process group {name!r} of the pickled optimizer, got none of that name in this "
            "process; create the groups in the same order before unpickling, or save state_dict() instead"
        ) from error
