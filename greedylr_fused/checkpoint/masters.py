"""Weights and states in full precision: float32 masters out of an optimizer and into it, and states for torch's AdamW.

A master is a parameter and what its remainder adds. Parameters are named as in the parameter groups or, without names
there, by their number in `state_dict()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.checkpoint.numbers import KEY
from greedylr_fused.checkpoint.spikes import SPIKES
from greedylr_fused.checkpoint.tuner import TUNER
from greedylr_fused.step import PEAKS
from greedylr_fused.tensors import (
    CORRECTED,
    EIGHT_BIT,
    TUNED,
    alike,
    conversion,
    has_memory,
    local,
    masters,
    spec_of,
    storage,
)

Groups = Sequence[Mapping[str, Any]]
States = Mapping[Tensor, dict[str, Any]]


def for_torch_adamw(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `state_dict()` as torch's AdamW has it: moments decoded, no keys but torch's."""
    states = {}
    for name, own in saved["state"].items():
        kept = {key: value for key, value in own.items() if key not in (*EIGHT_BIT, "remainder", *TUNED)}
        states[name] = kept | (conversion.decoded(own) if EIGHT_BIT[0] in own else {})
    groups = []
    for group in saved["param_groups"]:
        ours = (*storage.OPTIONS, CORRECTED, KEY, SPIKES, TUNER, *(PEAKS if KEY in group else ()))
        groups.append({key: value for key, value in group.items() if key not in ours})
    return {**saved, "state": states, "param_groups": groups}


def named(groups: Groups) -> dict[Any, Tensor]:
    """Return each parameter once, under its name or number."""
    has_names = all("param_names" in group for group in groups)
    params = [param for group in groups for param in group["params"]]
    keys = [name for group in groups for name in group["param_names"]] if has_names else range(len(params))
    found: dict[Tensor, Any] = {}
    for key, param in zip(keys, params, strict=True):
        found.setdefault(param, key)
    return {key: param for param, key in found.items()}


def join(groups: Groups, states: States) -> dict[Any, Tensor]:
    """Return new tensors: see `FusedAdamW.master_weights`."""
    return {key: _joined(param.detach(), states.get(param, {})) for key, param in named(groups).items()}


def _joined(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    if _has_master(param, state):
        here = masters.join(local(param), local(state["remainder"]))
        return storage.like_param(here, param, param.shape)
    return param.to(torch.promote_types(param.dtype, torch.float32), copy=True)


def _has_master(param: Tensor, state: Mapping[str, Any]) -> bool:
    return param.dtype == torch.bfloat16 and "remainder" in state


def load(weights: Any, groups: Groups, states: States, make_states: Callable[[], None]) -> None:
    """Write masters into parameters and remainders, where they lie: see `FusedAdamW.load_master_weights`.

    Args:
        weights: a mapping or an iterable.
        groups: the optimizer's.
        states: the optimizer's.
        make_states: makes those that are missing.
    """
    params = named(groups)
    given = _by_key(weights, params)
    _check_keeps(params.values(), groups, states)
    divided = [(param, _divided(key, given[key], param)) for key, param in params.items()]
    for param, _ in divided:
        if param.dtype != torch.bfloat16 and states.get(param):  # it takes the whole master now
            states[param].pop("remainder", None)
    make_states()
    for param, weight in divided:
        state = states.get(param, {})
        if _has_master(param, state):
            master = weight.to(param.device, torch.float32)
            high, low = masters.split(master, state["remainder"].dtype, None)
            local(param).copy_(high)
            local(state["remainder"]).copy_(low)
        else:
            local(param).copy_(weight)
    increment_version([param for param, _ in divided])


def _by_key(weights: Any, params: Mapping[Any, Tensor]) -> Mapping[Any, Any]:
    """Return the weights by the keys of their parameters."""
    if not isinstance(weights, Mapping):
        if isinstance(weights, (Tensor, str)) or not isinstance(weights, Iterable):
            raise TypeError(
                f"load_master_weights: expected a mapping or an iterable of tensors, got a {type(weights).__name__}; "
                "pass what master_weights() returned"
            )
        values = list(weights)
        if values and all(isinstance(value, tuple) and len(value) == 2 for value in values):
            weights = dict(values)  # as of named_parameters()
        elif len(values) == len(params):
            return dict(zip(params, values, strict=True))
        else:
            raise ValueError(
                f"load_master_weights: expected the {len(params)} parameters of the optimizer in its order, got "
                f"{len(values)} tensors; pass one for each, tied ones once, or a mapping"
            )
    if weights.keys() != params.keys():
        missing = [key for key in params if key not in weights]
        others = [key for key in weights if key not in params]
        raise ValueError(
            f"load_master_weights: expected the keys of master_weights(), {list(params)[:3]}..., got "
            f"{len(missing)} missing: {missing[:3]}, and {len(others)} unknown: {others[:3]}; construct the optimizer "
            "with model.named_parameters() to have names, and leave other tensors out"
        )
    return dict(weights)


def _check_keeps(params: Iterable[Tensor], groups: Groups, states: States) -> None:
    """Refuse masters where none is kept, and all would be rounded."""
    halves = [param for param in params if param.dtype in (torch.bfloat16, torch.float16)]
    keeps = any(group.get("master_weights") for group in groups) or any("remainder" in own for own in states.values())
    if halves and not keeps:
        raise RuntimeError(
            f"load_master_weights: expected an optimizer that keeps masters of its {len(halves)} 16-bit parameters, "
            'got master_weights=None; construct it with master_weights="int16", or copy the weights into the model'
        )


def _divided(key: Any, weight: Any, param: Tensor) -> Tensor:
    """Return the part of a master that belongs to the part of its parameter on this rank.

    Raises:
        TypeError, ValueError: not such a tensor; names its key.
    """
    where = f"load_master_weights: {key!r}"
    if not isinstance(weight, Tensor) or weight.layout is not torch.strided or not has_memory(local(weight)):
        raise TypeError(f"{where}: expected a dense tensor with memory, got {type(weight).__name__}; load the weights")
    if weight.shape != param.shape:
        raise ValueError(
            f"{where}: expected shape {tuple(param.shape)} like its parameter, got {tuple(weight.shape)}; load the "
            "weights of the same model"
        )
    if not weight.dtype.to_real().is_floating_point or weight.is_complex() != param.is_complex():
        raise TypeError(f"{where}: expected floats for a {param.dtype} parameter, got {weight.dtype}; dequantize them")
    if spec_of(weight) is not None and not alike(weight, param):
        raise ValueError(
            f"{where}: expected a whole tensor or the placements of its parameter, got {spec_of(weight).placements}; "
            "redistribute it, or pass its full_tensor()"
        )
    return local(conversion.divided(weight.detach(), param))
