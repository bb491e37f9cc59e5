"""Saving and loading of what a checkpoint holds beyond torch's AdamW, without rounding.

`Optimizer.load_state_dict` casts floating-point state to the parameter's dtype and replaces whatever lies in
`param_groups`; distributed checkpointing keeps only `state` and `param_groups`. So the control state travels as plain
numbers under the key "control" of every parameter group, and `stored.py` puts moments and remainders back. The window
is one text of numbers: with `full_state_dict=True` distributed checkpointing takes lists apart, loses an empty one, and
fails on one that is longer than that of the optimizer it loads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.capture import outside_inference
from greedylr_fused.checkpoint import checks, tuner
from greedylr_fused.checkpoint.numbers import KEY, saved
from greedylr_fused.checkpoint.resume import counted_in, loaded_control
from greedylr_fused.checkpoint.spikes import SPIKES, saved_spikes
from greedylr_fused.checkpoint.stored import restore
from greedylr_fused.control import Control, spikes_of
from greedylr_fused.step import Engine, options, peaks, storage_options
from greedylr_fused.tensors import STATE_ROWS, TUNED, conversion, storage
from greedylr_fused.warning import warn


def save(
    optimizer: Optimizer,
    numbers: Callable[[], list[dict[str, Any]]] | None,
    shown: MutableMapping[Tensor, Any],
    control_now: Callable[[], Control],
) -> dict[str, Any]:
    """Return torch's `state_dict` with the control state added; other hooks see both.

    Args:
        optimizer: the one to save.
        numbers: returns `Control.numbers()`; None without a schedule.
        shown: takes the step counts that the dictionary holds, weakly.
        control_now: returns the control, of which numbers of `skip_spikes` and of a tuner are added.
    """

    def complete(_: Optimizer, packed: dict[str, Any]) -> None:
        packed["state"] = {key: in_bytes(own) for key, own in packed["state"].items()}
        tuned = tuner.saved(control_now())
        for group in packed["param_groups"]:
            group |= {key: dict(numbers) for key, numbers in tuned.items()}
            if "state_dtype" in group:  # as a text: distributed checkpointing gathers no dtypes
                group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.")
        if numbers is not None:
            counted = counted_in(packed)
            shown.update((state["step"], True) for state in packed["state"].values() if _counts(state))
            for group, group_numbers in zip(packed["param_groups"], saved(numbers(), counted), strict=True):
                group |= {"lr": group_numbers["lr"], KEY: group_numbers} | peaks(group_numbers["initial_lr"])

        control = control_now()
        if spikes := spikes_of(control.vector, control.spike_window):
            for group in packed["param_groups"]:
                group[SPIKES] = saved_spikes(spikes)

    with optimizer.register_state_dict_post_hook(complete, prepend=True):
        return Optimizer.state_dict(optimizer)


def in_bytes(own: Any) -> Any:
    """Return a state as a checkpoint has it."""
    if not isinstance(own, Mapping) or not isinstance(own.get("remainder"), Tensor):
        return own
    return {**own, "remainder": conversion.in_bytes(own["remainder"])}


@outside_inference
def load(
    optimizer: Optimizer, state_dict: dict[str, Any], control: Control, engine: Engine, restart: Callable[[], None]
) -> None:
    """Load a checkpoint into the parts of an optimizer: all of it or, if anything fails, nothing. Other hooks see the
    checkpoint before it is read, and the optimizer when all is loaded.

    Args:
        optimizer: the one to load into.
        state_dict: what `save` returned, or torch's `state_dict`.
        control: the optimizer's.
        engine: the optimizer's.
        restart: called when groups and states are new, before other hooks.

    Raises:
        TypeError, ValueError: not a checkpoint of these parameters and groups; names the key.
    """
    previous = optimizer.state
    found: dict[str, Any] = {}

    def inspect(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        found.update(loaded=loaded, control=loaded_control(loaded, optimizer, control, engine.shown))
        return for_torch(loaded, optimizer.param_groups)

    def complete(_: Optimizer) -> None:
        tuned = engine.tuned and tuner.has_numbers(found["loaded"]["param_groups"])
        restore(optimizer, found["loaded"], previous, engine.state_dtype, tuned=tuned)
        control.become(found["control"])
        control.warn_of_end()
        warn_of_no_moments(found["loaded"], optimizer.param_groups, control)
        options.warn_of_low_lr(control.initial_lrs, tuned=engine.tuned, loaded=True)
        control.observed = 0
        engine.has_begun = True
        restart()

    before = optimizer.register_load_state_dict_pre_hook(inspect)
    after = optimizer.register_load_state_dict_post_hook(complete, prepend=True)
    with before, after, all_or_nothing(optimizer, control, engine):
        checks.check_dictionary(state_dict)
        for group in optimizer.param_groups:  # whose options of storage may have been written since the last load
            storage_options.check_params(group, engine.state_dtype)
            storage.complete(group, engine.state_dtype)
        Optimizer.load_state_dict(optimizer, state_dict)


def _counts(state: Any) -> bool:
    return isinstance(state, Mapping) and isinstance(state.get("step"), Tensor)


def warn_of_no_moments(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], control: Control) -> None:
    """Say that a schedule goes on where AdamW begins anew, as with a checkpoint that was cut to its groups. A rank may
    hold nothing that is trained.
    """
    step = int(control.slot("step"))
    trained = any(param.requires_grad and param.numel() for group in groups for param in group["params"])
    if step and trained and not loaded["state"]:
        warn(
            f"checkpoint: its schedule is at step {step}, and it has no moments of any parameter, so AdamW begins anew "
            'there; save and load all of state_dict(), "state" too'
        )


def drop_stale(groups: Sequence[dict[str, Any]], *, with_control: bool) -> None:
    """Empty what only a checkpoint has in live groups without a schedule: the loader of ZeroRedundancyOptimizer fills
    it, past `load`, and would save the same numbers long after they were true.
    """
    for group in groups:
        for name in (KEY, SPIKES, tuner.TUNER):
            if group.get(name) and not with_control:
                group[name] = {}


@contextlib.contextmanager
def all_or_nothing(optimizer: Optimizer, control: Control, engine: Engine) -> Iterator[None]:
    """Put back everything that loading has replaced, if PyTorch's loader, a hook or anything else fails.

    Loading writes into no tensor but the control's, which captured graphs read; all else is replaced by new objects.
    """
    owners: tuple[object, ...] = (optimizer, control, engine)
    before = [(vars(owner), dict(vars(owner))) for owner in owners]
    vector, kept = control.vector, control.vector.clone()
    try:
        yield
    except BaseException:
        for now, then in before:
            now.clear()
            now.update(then)
        vector.copy_(kept)
        control.restore_decay()
        raise


def for_torch(loaded: Mapping[str, Any], live: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the checkpoint for PyTorch's loader: without moments and remainders, which it would copy and round, and
    with this optimizer's own flags of how to compute.
    """
    ours = {*STATE_ROWS, *TUNED}
    state = {
        key: {name: value for name, value in own.items() if name not in ours} if isinstance(own, Mapping) else own
        for key, own in loaded["state"].items()
    }
    groups = [checks.with_flags(group, own) for group, own in zip(loaded["param_groups"], live, strict=True)]
    return {**loaded, "state": state, "param_groups": groups}
