"""What a checkpoint holds beyond torch's AdamW, and how it comes back without being rounded.

`Optimizer.load_state_dict` casts floating-point state to the parameter's dtype and replaces whatever lies in
`param_groups`; distributed checkpointing keeps only `state` and `param_groups`. So the control state travels as plain
numbers under the key "control" of every parameter group, and moments wider than their parameter are put back here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.control import SAVED, Control
from greedylr_fused.formats import DTYPES, MIXES, MOMENTS
from greedylr_fused.options import is_number

KEY = "control"


def complete(packed: dict[str, Any], numbers: Sequence[dict[str, Any]] | None) -> None:
    """Add to a fresh state_dict what torch does not know: with a schedule its numbers and the exact LRs. Without one
    nothing, so that distributed checkpointing, which compares keys, takes it for torch's AdamW in both directions.
    """
    for group, own in zip(packed["param_groups"], numbers or (), strict=numbers is not None):
        group[KEY] = own
        group["lr"] = own["lr"]
    packed["state"] = with_own_steps(packed["state"])


def with_own_steps(state: Mapping[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The states with step counts of their own: pickled, each view would carry the counts of all parameters."""
    return {
        key: own | {"step": own["step"].clone()} if isinstance(own.get("step"), Tensor) else own
        for key, own in state.items()
    }


def read_control(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The control numbers of a state_dict's `param_groups`; None if it was written by another optimizer.

    Raises:
        ValueError: they are there but damaged; names the key.
    """
    found = [dict(group.get(KEY) or {}) for group in groups]
    if not any(found):
        return None
    for i, numbers in enumerate(found):
        for name in (*SAVED, "lr", "initial_lr", "window"):
            if name not in numbers:
                raise ValueError(
                    f'checkpoint: param_groups[{i}]["{KEY}"] has no "{name}", allowed is what FusedAdamW.state_dict() '
                    f'wrote; load the whole checkpoint, or delete "{KEY}" from every group to start the schedule anew'
                )
        for name in ("lr", "initial_lr"):
            if not math.isfinite(numbers[name]) or numbers[name] < 0:
                raise ValueError(
                    f'checkpoint: param_groups[{i}]["{KEY}"]["{name}"] is {numbers[name]}, allowed is a finite '
                    "number >= 0; the file is damaged: load an earlier checkpoint"
                )
    return found


def loaded_control(loaded: Mapping[str, Any], live: Sequence[Mapping[str, Any]], control: Control) -> Control:
    """The control that a checkpoint describes, for an optimizer that has these groups and this control.

    Raises:
        ValueError: not a checkpoint, or one that does not fit; nothing has been changed then.
    """
    if not {"state", "param_groups"} <= loaded.keys():
        raise ValueError(
            f"checkpoint: got a dictionary with the keys {sorted(map(str, loaded))[:5]}, allowed is what state_dict() "
            'of an optimizer returns; pass that part of the file, such as checkpoint["optimizer"]'
        )
    groups = loaded["param_groups"]
    if len(groups) != control.n_groups:
        raise ValueError(
            f"checkpoint: got {len(groups)} parameter groups, allowed are the {control.n_groups} of this optimizer; "
            "construct it with the groups of the run that wrote the checkpoint"
        )
    check_states(loaded, live)
    try:
        return _control_of(groups, control)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("checkpoint") else f"checkpoint: {error}") from None


def _control_of(groups: Sequence[Mapping[str, Any]], control: Control) -> Control:
    numbers = read_control(groups)
    if numbers is None:
        return control.anew([float(group["lr"]) for group in groups])
    # The group's LR is what people edit in a checkpoint; untouched, it is the schedule's own.
    numbers = [own | {"lr": float(group["lr"])} for own, group in zip(numbers, groups, strict=True)]
    same_kind = numbers[0]["kind"] == float(control.slot("kind"))
    result = control.anew([own["initial_lr" if same_kind else "lr"] for own in numbers])
    result.load(numbers)
    return result


def check_states(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse states of another optimizer or another model, which torch's loader would let in.

    Raises:
        ValueError: names the key.
    """
    for index, param in _pairs(loaded, groups):
        own = loaded["state"].get(index) or {}
        for name in ("step", *MOMENTS[:2]) if own else ():
            if name not in own:
                raise ValueError(
                    f'checkpoint: state[{index!r}] has no "{name}" but {sorted(own)}, allowed are states of AdamW; '
                    "load one that FusedAdamW or torch.optim.AdamW wrote"
                )
        step = own.get("step", 0)
        if not is_number(step) and not (isinstance(step, Tensor) and step.numel() == 1):
            raise ValueError(f'checkpoint: state[{index!r}]["step"] is {step!r}, allowed is one number; it is damaged')
        for name in MOMENTS:
            if name in own and not isinstance(own[name], Tensor):
                raise ValueError(
                    f'checkpoint: state[{index!r}]["{name}"] is a {type(own[name]).__name__}, allowed is a tensor; '
                    "it is damaged"
                )
            if name in own and own[name].shape != param.shape:
                raise ValueError(
                    f'checkpoint: state[{index!r}]["{name}"] has shape {tuple(own[name].shape)}, allowed is '
                    f"{tuple(param.shape)} like its parameter; load the checkpoint of the same model"
                )


def _pairs(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
    """What a checkpoint calls each parameter, and the parameter."""
    ids = itertools.chain.from_iterable(group["params"] for group in loaded["param_groups"])
    return zip(ids, itertools.chain.from_iterable(group["params"] for group in groups), strict=False)


def restore_moments(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    state_dtype: torch.dtype | None,
    previous: Mapping[Tensor, dict[str, Any]],
) -> None:
    """Put back the moments that torch's loader rounded to the parameter's dtype, and separate from the checkpoint's
    memory what it aliased: training on must not change the dictionary that was loaded, nor its source.

    Args:
        saved: the loaded state_dict.
        groups: the optimizer's live parameter groups.
        state: its live state, already filled by torch's loader.
        state_dtype: the dtype asked for at construction; None keeps the wider of the checkpoint's and parameter's.
        previous: its state before loading: tensors found there again stay as they are.
    """
    for index, param in _pairs(saved, groups):
        values = saved["state"].get(index, {})
        if "step" in values:
            count = torch.as_tensor(values["step"], dtype=torch.float32, device=param.device)
            state[param]["step"] = count.reshape(()).clone()
        moments = {name: values[name] for name in MOMENTS if isinstance(values.get(name), Tensor)}
        if moments:  # of one dtype, though other optimizers keep exp_avg narrower than exp_avg_sq
            widest = functools.reduce(torch.promote_types, (value.dtype for value in moments.values()))
            dtype = moment_dtype(param, widest, state_dtype)
            for name, value in moments.items():
                moved = value.to(device=param.device, dtype=dtype)
                own = previous.get(param, {}).get(name)
                state[param][name] = moved.clone() if moved is value and value is not own else moved


def moment_dtype(param: Tensor, saved: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Storage type of a loaded moment."""
    if param.is_complex():
        return param.dtype
    if asked is not None:
        return asked
    wider = torch.promote_types(param.dtype, saved)
    mix = (DTYPES.get(param.dtype), DTYPES.get(param.dtype), DTYPES.get(wider))
    return wider if mix in MIXES else param.dtype
