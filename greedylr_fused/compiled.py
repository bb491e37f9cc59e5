"""The step within `torch.compile`: an operator that the compiler does not look into, with what it changes declared.

    opt.step(loss=loss)  ->  greedylr_fused::step(name, params, grads, moments, control vector, loss)

The operator finds the optimizer by its name and makes an ordinary step, with the gradients of the graph. So learning
rates, tables and checks are those of eager steps, nothing of the host's is frozen into the graph, and no number that
changes from step to step is guarded on. This module is imported where a step is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from greedylr_fused import live
from greedylr_fused.step import losses, options
from greedylr_fused.tensors.formats import MOMENTS

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW

_LIBRARY = torch.library.Library("greedylr_fused", "DEF")  # type: ignore[no-untyped-call]
#: A replay would leave out what the host does at each step: take over a written LR, new addresses, ask for metrics.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


def step(optimizer: FusedAdamW, closure: Callable[[], Any] | None, loss: Any) -> Any:
    """`FusedAdamW.step` as the compiler traces it."""
    name, traced = optimizer._name, optimizer._traced
    traced.observed = False
    result = None if closure is None else losses.call(closure)
    returned = None if traced.observed else result  # otherwise the closure has observed what it returns
    given = losses.one_loss(loss, returned, observed=False, driven=optimizer._control.needs_loss)
    _read_params(name)
    which = [i for i, param in enumerate(traced.params) if param.grad is not None]
    _create_moments(name, tuple(which))
    torch.ops.greedylr_fused.step(
        name,
        which,
        [traced.params[i] for i in which],
        [traced.params[i].grad for i in which],
        [moment for i in which for moment in traced.moments[i]],
        optimizer._control.vector,
        _as_tensor(given),
    )
    return result


def observe(optimizer: FusedAdamW, loss: Any, weight: Any) -> None:
    """`FusedAdamW.observe` as the compiler traces it."""
    losses.check_loss(loss)
    losses.check_weight(weight)
    optimizer._traced.observed = True
    number = not isinstance(weight, Tensor)
    torch.ops.greedylr_fused.observe(
        optimizer._name, _as_tensor(loss), _as_tensor(weight), number, optimizer._control.vector
    )


def zero_grad(optimizer: FusedAdamW, set_to_none: bool) -> None:
    """`FusedAdamW.zero_grad` as the compiler traces it: torch's reads the groups, and with them every LR."""
    _read_params(optimizer._name)
    for param in optimizer._traced.params:
        if set_to_none:
            param.grad = optimizer._traced.nothing  # whether or not there is one, of which the graph need not know
        elif param.grad is not None:
            param.grad.zero_()


def _as_tensor(value: Any) -> Tensor | None:
    """A number as float64; a tensor, without its graph, as it is."""
    if value is None:
        return None
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _read_params(name: str) -> None:
    """At trace time: which parameters there are.

    Raises:
        RuntimeError: one is a DTensor.
    """
    optimizer = live.found(name)
    params = live.params_of(optimizer)
    if any(hasattr(param, "device_mesh") for param in params):
        raise RuntimeError(
            "FusedAdamW: got DTensor parameters within torch.compile, allowed are plain tensors; compile forward and "
            "backward, and call opt.step(loss=loss) outside of what is compiled"
        )
    if not live.same(params, optimizer._traced.params):
        optimizer._traced.params = params
        optimizer._traced.forget(params)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _create_moments(name: str, which: tuple[int, ...]) -> None:
    """At trace time: let those parameters have moments, whose addresses graphs may rely on."""
    optimizer = live.found(name)
    traced = optimizer._traced
    chosen = {traced.params[i] for i in which}
    optimizer._engine.init_states(optimizer.param_groups, optimizer.state, chosen.__contains__)
    for i in which:
        moments = _moments(optimizer, i)
        if not live.same(moments, traced.moments.get(i, [])):
            traced.moments[i] = moments
        for tensor in (traced.params[i], *moments):
            torch._dynamo.mark_static_address(tensor)
    torch._dynamo.mark_static_address(optimizer._control.vector)


def _moments(optimizer: FusedAdamW, i: int) -> list[Tensor]:
    own = optimizer.state.get(optimizer._traced.params[i], {})
    return [own[name] for name in MOMENTS if name in own]


def _owned(optimizer: FusedAdamW, which: Sequence[int], declared: Sequence[Tensor]) -> list[Tensor]:
    """What stands behind the declared tensors: parameters, then moments. A moment that was replaced since the trace is
    the optimizer's business; nobody reads the old one, and it stands for itself.
    """
    traced, key = optimizer._traced, tuple(which)
    if (known := traced.owned.get(key)) is not None:
        return known
    params = [traced.params[i] for i in which]
    now = {id(moment) for i in which for moment in _moments(optimizer, i)}
    moments = [moment for i in which for moment in traced.moments[i]]
    owned = [m if id(m) in now else itself for m, itself in zip(moments, declared, strict=True)]
    if live.same(owned, moments):
        traced.owned[key] = [*params, *moments]
    return [*params, *owned]


_SCHEMAS = {
    "step": "(str optimizer, int[] which, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, "
    "Tensor(c!) control, Tensor? loss) -> ()",
    "observe": "(str optimizer, Tensor loss, Tensor weight, bool number, Tensor(a!) control) -> ()",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"greedylr_fused::{_name}", _schema, lib=_LIBRARY, tags=_TAGS)


@torch.library.impl("greedylr_fused::step", "CompositeExplicitAutograd", lib=_LIBRARY)
def _run_step(
    name: str,
    which: Sequence[int],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    control: Tensor,
    loss: Tensor | None,
) -> None:
    optimizer = live.found(name)
    traced = optimizer._traced
    if not live.same(traced.params, now := live.params_of(optimizer)):
        traced.forget(now)
        raise RuntimeError(
            "FusedAdamW: got a compiled step of parameters that have been replaced in param_groups since, allowed are "
            "those that it was compiled for; call the compiled function again, and it is compiled anew"
        )
    options.warn_of_scheduler(optimizer)
    with (
        torch.no_grad(),
        _standing_in([*params, *moments, control], [*_owned(optimizer, which, moments), optimizer._control.vector]),
        _gradients(traced.params, dict(zip(which, grads, strict=True))),
    ):
        optimizer._take_step(loss)


@torch.library.impl("greedylr_fused::observe", "CompositeExplicitAutograd", lib=_LIBRARY)
def _run_observe(name: str, loss: Tensor, weight: Tensor, number: bool, control: Tensor) -> None:
    optimizer = live.found(name)
    with torch.no_grad(), _standing_in([control], [optimizer._control.vector]):
        optimizer.observe(loss, weight.item() if number else weight)  # a number is one in host memory


@torch.library.register_fake("greedylr_fused::step", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _fake_step(*_: Any) -> None:
    """Nothing is returned, and no shape changes."""


@torch.library.register_fake("greedylr_fused::observe", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _fake_observe(*_: Any) -> None:
    """Nothing is returned, and no shape changes."""


@contextlib.contextmanager
def _standing_in(given: Sequence[Tensor], own: Sequence[Tensor]) -> Iterator[None]:
    """Change what the graph has given, by means of the optimizer's own.

    Mostly these are the same tensors. Where the compiler wants to keep the old values too, or has made the graph free
    of side effects (`backend="aot_eager"`), it gives copies to be changed, and puts them in place itself: then the
    optimizer's own stay as they were.
    """
    others = [
        (copy, tensor, tensor.detach().clone())
        for copy, tensor in zip(given, own, strict=True)
        if copy is not tensor and copy.data_ptr() != tensor.data_ptr()
    ]
    for copy, tensor, _ in others:
        tensor.copy_(copy)
    yield
    for copy, tensor, before in others:
        copy.copy_(tensor)
        tensor.copy_(before)


@contextlib.contextmanager
def _gradients(params: Sequence[Tensor], given: dict[int, Tensor]) -> Iterator[None]:
    """The gradients of the graph in the place of those that the parameters have outside of it."""
    before: list[tuple[Tensor, Tensor | None]] = []
    for i, param in enumerate(params):
        grad = given.get(i)
        if param.grad is not grad:
            before.append((param, param.grad))
            param.grad = grad
    try:
        yield
    finally:
        for param, outside in before:
            param.grad = outside
