"""Checks that a dictionary is a checkpoint of these parameters and groups, all made before anything is changed.

All raise TypeError or ValueError, and name the place in the dictionary, what is expected there, and the value there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from greedylr_fused.step import options, storage_options
from greedylr_fused.tensors import CORRECTED, eight_bit, storage

#: Options of a group that say how to compute. An optimizer keeps its own; torch's AdamW takes those of a checkpoint.
_FLAGS = ("foreach", "capturable", "differentiable", "fused")


def with_flags(group: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loaded group with the flags of the live one, which also says how its own state is stored, and, where
    the checkpoint does not, whether its weight decay is corrected.
    """
    own = {CORRECTED: live[CORRECTED]} if CORRECTED in live else {}
    kept = {name: live[name] for name in (*_FLAGS, *storage.OPTIONS) if name in live}
    return {
        name: value for name, value in {**own, **group, **kept}.items() if name in live or name not in storage.OPTIONS
    }


def refuse(where: str, got: object, allowed: str, remedy: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise an error in the form that all errors of a checkpoint have."""
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise error(f"checkpoint: {where}: expected {allowed}, got {shown}; {remedy}")


def check_dictionary(loaded: Any) -> None:
    """Refuse what is no dictionary, which no hook can make a state_dict of.

    Raises:
        TypeError: no dictionary.
    """
    if not isinstance(loaded, Mapping):
        raise TypeError(
            f"checkpoint: expected the dictionary of state_dict(), got a {type(loaded).__name__}; pass that dictionary"
        )


def check_layout(loaded: Any, live: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is not a state_dict of an optimizer with these groups.

    Raises:
        TypeError, ValueError: names the key.
    """
    check_dictionary(loaded)
    if not {"state", "param_groups"} <= loaded.keys():
        raise ValueError(
            "checkpoint: expected what state_dict() of an optimizer returns, got a dictionary with the keys "
            f'{sorted(map(str, loaded))[:5]}; pass that part of the file, such as checkpoint["optimizer"]'
        )
    if not isinstance(loaded["state"], Mapping):
        refuse("state", loaded["state"], "a dictionary", "load an earlier checkpoint", TypeError)
    groups = loaded["param_groups"]
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        refuse("param_groups", groups, "a list of dictionaries", "load an earlier checkpoint", TypeError)
    if len(groups) != len(live):
        raise ValueError(
            f"checkpoint: expected the {len(live)} parameter groups of this optimizer, got {len(groups)}; construct it "
            "with the groups of the run that wrote the checkpoint"
        )
    for index, (group, live_group) in enumerate(zip(groups, live, strict=True)):
        _check_formats(group, f"param_groups[{index}]")
        _check_group(with_flags(group, live_group), index, len(live_group["params"]))
    _check_ids(loaded, live)


def _check_formats(group: Mapping[str, Any], where: str) -> None:
    """Refuse formats of 8-bit moments and remainders that are not this version's."""
    known = (("state_version", range(1, storage.VERSION + 1)), ("state_group_size", (eight_bit.GROUP,)))
    for name, allowed in known:
        if group.get(name) is not None and group[name] not in allowed:
            wanted = f"at most {allowed[-1]}" if name == "state_version" else f"{allowed[-1]}"
            refuse(f'{where}["{name}"]', group[name], wanted, "update greedylr_fused, which is older")


def _check_group(group: Mapping[str, Any], index: int, n_params: int) -> None:
    where = f"param_groups[{index}]"
    for name in ("params", "lr", "betas", "eps", "weight_decay"):
        if name not in group:
            raise ValueError(
                f"checkpoint: {where}: expected a group of AdamW, got one with the keys {sorted(map(str, group))}, "
                f'without "{name}"; load a checkpoint that FusedAdamW or torch.optim.AdamW wrote'
            )
    if not isinstance(group["params"], (list, tuple)):
        refuse(f'{where}["params"]', group["params"], "a list", "load an earlier checkpoint", TypeError)
    if len(group["params"]) != n_params:
        raise ValueError(
            f'checkpoint: {where}["params"]: expected the {n_params} parameters of that group of this optimizer, got '
            f"{len(group['params'])}; construct it with the groups of the run that wrote the checkpoint"
        )
    for name in ("amsgrad", "maximize"):
        value = group.get(name, False)
        if not isinstance(value, int) or value not in (0, 1):
            refuse(f'{where}["{name}"]', value, "True or False", "load an earlier checkpoint", TypeError)
    for name in ("lr", "eps", "weight_decay"):
        as_float(f'{where}["{name}"]', group[name])
    try:
        options.check_group(dict(group), index)
        storage_options.check_storage(
            group.get("state_dtype"), group.get("master_weights"), amsgrad=bool(group.get("amsgrad"))
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"checkpoint: {where}: {error}") from None


def _check_ids(loaded: Mapping[str, Any], live: Sequence[Mapping[str, Any]]) -> None:
    """Check that each parameter has one name, and each name one parameter (either may be listed twice)."""
    of_name: dict[Any, Tensor] = {}
    of_param: dict[Tensor, Any] = {}
    for name, param in pairs(loaded, live):
        if not isinstance(name, (int, str)):
            refuse('an entry of "params"', name, "a number or a name", "load an earlier checkpoint", TypeError)
        if of_name.setdefault(name, param) is not param or of_param.setdefault(param, name) != name:
            raise ValueError(
                f'checkpoint: param_groups[...]["params"]: expected each parameter once, got {name!r} in two places; '
                "load an earlier checkpoint"
            )


def pairs(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
    """Return pairs of each parameter's name in a checkpoint and the parameter."""
    names = itertools.chain.from_iterable(group["params"] for group in loaded["param_groups"])
    return zip(names, itertools.chain.from_iterable(group["params"] for group in groups), strict=True)


def check_count(where: str, value: Any) -> float:
    """Return a value as a float, if it is a whole number from 0 to 2**53."""
    number = as_float(where, value)
    if not 0 <= number <= 2**53 or number != int(number):
        refuse(where, value, "a whole number from 0 to 2**53", "it is damaged: load an earlier checkpoint")
    return number


def as_float(where: str, value: Any) -> float:
    """Return a value as a float, if it is one number, NaN and infinities included."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        return float(value)
    if not options.is_number(value):
        refuse(where, value, "one number", "it is damaged: load an earlier checkpoint", TypeError)
    try:
        return float(value)
    except OverflowError:
        refuse(where, value, "a number that a float can hold", "it is damaged: load an earlier checkpoint")
