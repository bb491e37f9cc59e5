"""What a checkpoint holds beyond torch's AdamW, and how it comes back without being rounded.

`Optimizer.load_state_dict` casts floating-point state to the parameter's dtype and replaces whatever lies in
`param_groups`; distributed checkpointing keeps only `state` and `param_groups`. So the control state travels as plain
numbers under the key "control" of every parameter group, and moments wider than their parameter are put back here. The
window is one text of numbers: with `full_state_dict=True` distributed checkpointing takes lists apart, loses an empty
one, and fails on one that is longer than that of the optimizer it loads.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import checks
from greedylr_fused.checkpoint.numbers import KEY as KEY
from greedylr_fused.checkpoint.numbers import check_decay, fitted, read_control, saved
from greedylr_fused.control.vector import Control
from greedylr_fused.tensors.formats import DTYPES, MIXES, MOMENTS

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW


def state_dict(self: FusedAdamW) -> dict[str, Any]:
    """As in torch. With a schedule each group also carries, under "control", its state as numbers, and the exact LR;
    then it waits for the device. Without one there is no other key than in torch's, which distributed checkpointing
    compares: it takes a plain optimizer for torch's AdamW in both directions.
    """

    def complete(_: Optimizer, packed: dict[str, Any]) -> None:
        if self.schedule is not None:
            for group, own in zip(packed["param_groups"], saved(self._numbers()), strict=True):
                group[KEY] = own
                group["lr"] = own["lr"]
        packed["state"] = with_own_steps(packed["state"])

    with self.register_state_dict_post_hook(complete, prepend=True):  # other hooks see all of it
        return Optimizer.state_dict(self)


def load_state_dict(self: FusedAdamW, state_dict: dict[str, Any]) -> None:
    """Load a checkpoint of FusedAdamW or of `torch.optim.AdamW`: all of it or, if anything fails, nothing.

    Moments keep the wider of the checkpoint's and the parameter's dtype, float64 ones of 16-bit parameters float32. The
    schedule keeps its own options: of a window longer than its own the newest losses are taken; from a checkpoint
    without its numbers it starts anew from the LRs there, a step schedule at its first step, unless a scheduler of
    torch has driven that run: then a step schedule goes on from the scheduler's peak and the steps taken. (torch's
    AdamW has no numbers; but if it loaded ours, it hands them on as they were.) Moments on the parameters'
    device are copied, while those before stay until all is loaded: where memory is short, load from the CPU
    (`map_location="cpu"`).

    Args:
        self: the optimizer.
        state_dict: what `state_dict()` returned.

    Raises:
        TypeError, ValueError: not a checkpoint of these parameters and groups, damaged numbers, or those of a schedule
            that compared something else, by another `mode` or `smooth`. Names the key.
        Exception: whatever a hook raises, or a lack of memory.
    """
    previous = self.state
    found: dict[str, Any] = {}

    def inspect(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        found.update(loaded=loaded, control=loaded_control(loaded, self.param_groups, self._control))
        return for_torch(loaded, self.param_groups)

    def complete(_: Optimizer) -> None:
        restore(self, found["loaded"], previous)
        self._control.take(found["control"])
        self._control.warn_of_end()
        self._control.observed = 0
        self._engine.begun = True
        self._restart()

    # Other hooks see the checkpoint before it is read, and the optimizer when all is loaded.
    before = self.register_load_state_dict_pre_hook(inspect)
    after = self.register_load_state_dict_post_hook(complete, prepend=True)
    with before, after, all_or_nothing(self):
        checks.check_dictionary(state_dict)
        Optimizer.load_state_dict(self, state_dict)


def with_own_steps(state: Mapping[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The states with step counts of their own: pickled, each view would carry the counts of all parameters."""
    return {
        key: own | {"step": own["step"].clone()}
        if isinstance(own, dict) and isinstance(own.get("step"), Tensor)
        else own
        for key, own in state.items()
    }


def loaded_control(loaded: Mapping[str, Any], live: Sequence[Mapping[str, Any]], control: Control) -> Control:
    """The control that a checkpoint describes, for an optimizer that has these groups and this control.

    Raises:
        TypeError, ValueError: not a checkpoint, or one that does not fit; nothing has been changed then.
    """
    checks.check_layout(loaded, live)
    checks.check_states(loaded, live)
    try:
        return _control_of(loaded["param_groups"], control, _taken(loaded["state"]))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("checkpoint") else f"checkpoint: {error}") from None


def _control_of(groups: Sequence[Mapping[str, Any]], control: Control, taken: float = 0.0) -> Control:
    numbers = read_control(groups)
    if numbers is None:
        result = control.anew([_peak(group) if control.follows_steps else float(group["lr"]) for group in groups])
        begins = control.follows_steps and not any("initial_lr" in group for group in groups)  # that LR was constant
        result.load([own | {"step": 0.0 if begins else taken} for own in result.numbers()])
        return result
    check_decay(numbers[0], control)
    step = max(numbers[0]["step"], taken)  # another optimizer that trained on has counted in the states alone
    fraction = control.curve.fraction(step, numbers[0]["decay_start"], numbers[0]["decay_steps"])
    for own, group in zip(numbers, groups, strict=True):
        own["step"] = step
        # The group's LR is what people edit in a checkpoint; untouched, it is the schedule's own, or what an earlier
        # version showed of it within a ZeroRedundancyOptimizer.
        if group["lr"] not in (own["lr"], group[KEY].get("mirrored_lr")):
            own["lr"] = float(group["lr"])
            own["level"] = own["lr"] / fraction if fraction else own["level"]
    numbers = fitted(numbers, control)
    result = control.anew([own["initial_lr"] for own in numbers])
    result.load(numbers)
    return result


def _taken(state: Mapping[Any, Any]) -> float:
    """Steps that the states of a checkpoint have counted."""
    steps = [torch.as_tensor(own["step"], dtype=torch.float32).reshape(()) for own in state.values() if "step" in own]
    return float(torch.stack([step.cpu() for step in steps]).max()) if steps else 0.0


def _peak(group: Mapping[str, Any]) -> float:
    """Where a torch.optim.lr_scheduler left it: under "initial_lr", but OneCycleLR, which begins below it, under
    "max_lr". Without a scheduler it is the LR.
    """
    return float(group.get("max_lr", group["initial_lr"]) if "initial_lr" in group else group["lr"])


def mark(groups: Sequence[dict[str, Any]], *, with_control: bool) -> None:
    """Let live groups have the key "control", empty, if their checkpoints have it: a flattened checkpoint of
    torch.distributed.checkpoint is read by the keys of the live groups.
    """
    for group in groups:
        group.pop(KEY, None)
        if with_control:
            group[KEY] = {}


@contextlib.contextmanager
def all_or_nothing(optimizer: FusedAdamW) -> Iterator[None]:
    """If loading fails, whatever fails in it, PyTorch's loader or a hook: put back everything that it replaced.

    Loading writes into no tensor but the control's, which captured graphs read; the rest are other objects.
    """
    owners: tuple[object, ...] = (optimizer, optimizer._control, optimizer._engine)
    before = [(vars(owner), dict(vars(owner))) for owner in owners]
    vector = optimizer._control.vector
    kept = vector.clone()
    try:
        yield
    except BaseException:
        for now, own in before:
            now.clear()
            now.update(own)
        vector.copy_(kept)
        optimizer._control.restore_decay()
        raise


def for_torch(loaded: Mapping[str, Any], live: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What PyTorch's loader is given: without moments, which it would round, and copy on the way; with this optimizer's
    own flags of how to compute.
    """
    state = {
        key: {name: value for name, value in own.items() if name not in MOMENTS} if isinstance(own, Mapping) else own
        for key, own in loaded["state"].items()
    }
    groups = [checks.with_flags(group, own) for group, own in zip(loaded["param_groups"], live, strict=True)]
    return {**loaded, "state": state, "param_groups": groups}


def restore(optimizer: FusedAdamW, saved: Mapping[str, Any], previous: Mapping[Tensor, Any]) -> None:
    """Add to what PyTorch's loader has loaded the moments, unrounded, in memory of their own: training on must not
    change the dictionary that was loaded, nor its source.

    Args:
        optimizer: the loader has given it its new state and parameter groups.
        saved: the loaded state_dict.
        previous: its state before: tensors found there again stay as they are.
    """
    for index, param in checks.pairs(saved, optimizer.param_groups):
        values = saved["state"].get(index, {})
        if "step" in values:
            count = torch.as_tensor(values["step"], dtype=torch.float32, device=param.device).detach()
            optimizer.state[param]["step"] = count.reshape(()).clone()
        moments = {name: values[name] for name in MOMENTS if name in values}
        if moments:  # of one dtype, though other optimizers keep exp_avg narrower than exp_avg_sq
            widest = functools.reduce(torch.promote_types, (value.dtype for value in moments.values()))
            dtype = moment_dtype(param, widest, optimizer._engine.state_dtype)
            own = previous.get(param, {})
            for name, value in moments.items():
                source = value.detach()
                moved = source.to(device=param.device, dtype=dtype)
                shared = moved is source and value is not own.get(name)
                optimizer.state[param][name] = moved.clone() if shared else moved


def moment_dtype(param: Tensor, saved: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Storage type of a loaded moment."""
    if param.is_complex():
        return param.dtype
    if asked is not None:
        return asked
    wider = torch.promote_types(param.dtype, saved)
    own = DTYPES.get(param.dtype)
    allowed = (wider, torch.float32, param.dtype)
    return next((dtype for dtype in allowed if (own, own, DTYPES.get(dtype)) in MIXES), param.dtype)
