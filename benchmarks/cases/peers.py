"""The contenders behind one interface: a name, a reason not to run, and a step over the shared workload.

A name is a family and options, as in `torch-fused+clip+greedy`:

clip     gradients clipped by their norm: `clip_grad_norm_` for torch's and others', folded in for ours.
greedy   GreedyLR decides the learning rate: on the device for ours; on the host, which reads the loss, for others.
graph    the step captured once in a CUDA graph and replayed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.cases.unfused import ADAMW, LR, MAX_GRAD_NORM, SCHEDULE, in_float32, of_one_type, unfused
from benchmarks.cases.workload import Workload
from benchmarks.harness import NotOffered, Step, captured, need_graphs
from greedylr_fused import FusedAdamW, available_backends

OPTIONS = ("clip", "greedy", "graph")
BASE = "torch-fused"


@dataclass(frozen=True)
class Contender:
    """A family of optimizers with options."""

    family: str
    options: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, name: str) -> Contender:
        """From a name as in `--contenders`.

        Raises:
            ValueError: unknown family or option.
        """
        family, *options = name.split("+")
        unknown = [option for option in options if option not in OPTIONS]
        if family not in FAMILIES or unknown:
            raise ValueError(
                f"contender: expected one of {', '.join(FAMILIES)}, followed by any of "
                f"{', '.join('+' + option for option in OPTIONS)}, got {name!r}"
            )
        return cls(family, frozenset(options))

    @property
    def name(self) -> str:
        """As parsed, options in their order."""
        return "+".join([self.family, *(option for option in OPTIONS if option in self.options)])

    @property
    def base(self) -> Contender:
        """What its ratio is taken to: torch's fused AdamW doing the same work, by calls where ours is captured: a
        graph is a way to be faster, not other work. Beside a compressed state it is all float32, which that replaces.
        """
        return Contender(BASE, self.options - {"graph"})


@dataclass(frozen=True)
class Built:
    """A step that can be timed.

    Attributes:
        step: one optimizer step, with all that its options ask for.
        optimizer: for what it holds.
        traffic_known: whether it moves the mix's own bytes; not so where moments are compressed.
        remark: what else it does, for the record.
    """

    step: Step
    optimizer: torch.optim.Optimizer
    traffic_known: bool = True
    remark: str = ""


def build(contender: Contender, work: Workload) -> Built:
    """Set up a contender over a workload, and run it once.

    Raises:
        NotOffered: it cannot; says why.
    """
    if "graph" in contender.options:
        need_graphs(work.device)
    built = FAMILIES[contender.family](contender, work)
    if "graph" in contender.options:
        return replace(built, step=captured(built.step, work.device))
    return built


def preferred(device: torch.device) -> str:
    """The family of ours on the backend that it prefers there."""
    return "ours-" + next(name for name, reason in available_backends(device).items() if reason is None)


def own_state_bytes(contenders: list[Contender], elements: int) -> int:
    """Memory of moments that contenders cannot share, of those that are installed: for the check that a case fits."""
    families = {contender.family for contender in contenders} & set(_OWN_STATE)
    installed = [f for f in families if importlib.util.find_spec(_OWN_STATE[f][0]) is not None]
    return elements * sum(_OWN_STATE[family][1] for family in installed)


def state_bytes(built: Built) -> int:
    """Memory of everything in the optimizer's state, shared moments included."""
    seen: dict[int, int] = {}
    for state in built.optimizer.state.values():
        for value in state.values():
            for tensor in _plain(value):
                seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _plain(value: Any) -> list[Tensor]:
    if hasattr(value, "__tensor_flatten__"):  # a subclass made of several tensors
        return [tensor for name in value.__tensor_flatten__()[0] for tensor in _plain(getattr(value, name))]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _plain(part)]
    return [value] if isinstance(value, Tensor) else []


def _ours(backend: str) -> Callable[[Contender, Workload], Built]:
    def build(contender: Contender, work: Workload) -> Built:
        reason = available_backends(work.device).get(backend, "this version has no such backend")
        if reason is not None:
            raise NotOffered(reason)
        optimizer = FusedAdamW(
            work.params,
            lr=LR,
            **ADAMW,
            amsgrad=work.mix.amsgrad,
            schedule=SCHEDULE if "greedy" in contender.options else None,
            max_grad_norm=MAX_GRAD_NORM if "clip" in contender.options else None,
            backend=backend,
            state_dtype=work.mix.state,
            master_weights=str(work.mix.remainder).removeprefix("torch.") if work.mix.remainder else None,
        )
        _share_states(optimizer, work, work.params, step_device=work.device)
        loss = work.loss if "greedy" in contender.options else None
        return _tried(Built(lambda: optimizer.step(loss=loss), optimizer), errors=())

    return build


def _torch(*, compiled: bool = False, narrow: bool = False, **how: bool) -> Callable[[Contender, Workload], Built]:
    def build(contender: Contender, work: Workload) -> Built:
        options = dict(how)
        graph, cuda = "graph" in contender.options, work.device.type == "cuda"
        if graph and "greedy" in contender.options:
            raise NotOffered("a captured step cannot hand its loss to a schedule on the host")
        if options.get("capturable") and not cuda:
            raise NotOffered("capturable is for CUDA devices")
        if compiled and cuda or graph:
            options["capturable"] = True
        if narrow and not (work.mix.compressed and work.mix.param == torch.bfloat16):
            raise NotOffered("bfloat16 parameters, gradients and moments, beside the compressed states of such")
        params, convert = of_one_type(work) if narrow or not work.mix.compressed else (in_float32(work), None)
        lr = torch.tensor(LR, device=work.device) if options.get("capturable") or compiled else LR
        optimizer = AdamW(params, lr=lr, **ADAMW, amsgrad=work.mix.amsgrad, **options)
        on_device = bool(options.get("capturable") or options.get("fused"))
        if not work.mix.compressed:
            _share_states(optimizer, work, params, step_device=work.device if on_device else torch.device("cpu"))
        update = torch.compile(optimizer.step) if compiled else optimizer.step
        remark = "" if convert is None else "gradients are converted to the parameters' type first"
        if work.mix.compressed:
            remark = f"parameters, gradients and moments in {'bfloat16' if narrow else 'float32'}"
        step = unfused(contender.options, optimizer, params, work, update, convert)
        built = Built(step, optimizer, not work.mix.compressed, remark)
        mixed = work.mix.state != work.mix.param and not work.mix.compressed
        return _tried(built, errors=(RuntimeError, TypeError) if mixed else ())

    return build


def _share_states(
    optimizer: torch.optim.Optimizer, work: Workload, params: list[torch.nn.Parameter], step_device: torch.device
) -> None:
    for param, state in zip(params, work.states, strict=True):
        optimizer.state[param] = {"step": torch.ones((), device=step_device), **state}


def _tried(built: Built, errors: tuple[type[Exception], ...]) -> Built:
    """The same after one step; of these errors the text becomes the reason."""
    try:
        built.step()
    except errors as error:
        raise NotOffered(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from None
    return built


#: Takes the type of the remainder of a mix.
Masters = Callable[[torch.dtype | None], dict[str, Any]]


def _installed(
    module: str, attribute: str, note: str, masters: Masters | None = None
) -> Callable[[Contender, Workload], Built]:
    """A peer from another package, with its own state; whatever it raises is the reason not to show it."""

    def build(contender: Contender, work: Workload) -> Built:
        mix = work.mix
        if "graph" in contender.options:
            raise NotOffered("its step reads values on the host, which cannot be captured")
        if mix.amsgrad or mix.param != mix.grad or not (mix.compressed or mix.state == mix.param):
            raise NotOffered("compared where parameters and gradients have one type, without amsgrad")
        if masters is None and mix.remainder is not None:
            raise NotOffered("it has no masters of bfloat16 parameters")
        arguments = {} if masters is None else masters(mix.remainder)
        try:
            make = getattr(importlib.import_module(module), attribute)
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            raise NotOffered(f"{module.split('.')[0]} cannot be imported: {error}") from None
        try:
            optimizer = make(work.params, lr=LR, **ADAMW, **arguments)
        except Exception as error:
            raise NotOffered(f"{type(error).__name__}: {error}") from None
        step = unfused(contender.options, optimizer, work.params, work, optimizer.step)
        return _tried(Built(step, optimizer, traffic_known=False, remark=note), errors=(Exception,))

    return build


def _flash_masters(remainder: torch.dtype | None) -> dict[str, Any]:
    """The bits of a master, those of the parameter included."""
    return {"master_weight_bits": None if remainder is None else 16 + 8 * remainder.itemsize}


#: Package, and bytes per parameter of moments of its own.
_OWN_STATE = {"flashoptim": ("flashoptim", 3), "torchao-8bit": ("torchao", 3)}
_OWN_STATE |= {"bnb-8bit": ("bitsandbytes", 3), "bnb-32bit": ("bitsandbytes", 8)}
FAMILIES: dict[str, Callable[[Contender, Workload], Built]] = {
    **{f"ours-{name}": _ours(name) for name in ("cuda", "triton", "cpu", "reference")},
    "torch-fused": _torch(fused=True),
    "torch-fused-bf16": _torch(fused=True, narrow=True),
    "torch-foreach": _torch(foreach=True),
    "torch-forloop": _torch(foreach=False),
    "torch-capturable": _torch(foreach=True, capturable=True),
    "torch-compiled": _torch(compiled=True, foreach=True),
    "flashoptim": _installed("flashoptim", "FlashAdamW", "moments in 8 bits", _flash_masters),
    "torchao-8bit": _installed("torchao.optim", "AdamW8bit", "moments in 8 bits"),
    "bnb-8bit": _installed("bitsandbytes.optim", "AdamW8bit", "moments in 8 bits"),
    "bnb-32bit": _installed("bitsandbytes.optim", "AdamW32bit", "moments in float32"),
}
