"""A whole training step as one CUDA graph: captured once, replayed, and refused once it is outdated.

    train_step = CapturedStep(body, opt)     # body: forward, backward, opt.step(loss=loss)
    for batch in loader:
        loss = train_step(*batch)

A graph repeats its launches with the addresses and numbers of the capture. What the optimizer reads on the device at
each step (LR, schedule, loss) follows the run; what the host wrote at the capture (hyper-parameters, addresses) does
not, and is compared before each replay with what it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils import _pytree as pytree

from greedylr_fused.capture import capturing
from greedylr_fused.graphs.checks import Frozen, check_arguments, check_constant, check_input, check_nothing_observed
from greedylr_fused.graphs.torch_graph import Graph, SideStream
from greedylr_fused.optimizer import FusedAdamW

#: What CapturedSteps held that were destroyed during a capture, in which nobody can wait for their last replay.
_LEFT: list[Any] = []


class CapturedStep:
    """A training step that runs eagerly a few times, is captured as a CUDA graph, and is replayed from then on.

    Every call is one training step, those before the capture too; the bits are those of eager steps if the body's
    operations have the same bits in a graph. Gradients are cleared before each step; `.grad` shows those of the last
    replay, unless the body clears them. An LR written to `param_groups` or by `set_lr` takes effect at the next call,
    and `metrics()` and telemetry go on. Eager steps in between are possible, with `opt.zero_grad()` after them.

    Args:
        body: a function of tensors (in any nesting of lists and dictionaries) that computes the loss, calls
            `backward()` and `optimizer.step(loss=loss)`, and waits for nothing: no `loss.item()`, no shapes that
            depend on values. What it returns is returned by each call, detached; the next one overwrites its tensors.
        optimizer: the one that the body steps, with parameters on a GPU.
        warmup: eager calls before the capture, >= 1, on another stream, as torch.cuda.graph needs them. Default: 3.
        pool: memory pool to share with other graphs, as `torch.cuda.graph_pool_handle()` returns it. Default: its own.

    Raises:
        TypeError, ValueError: no FusedAdamW, no function, or no number of calls.
        RuntimeError: the parameters are not on a GPU.
    """

    _graph: Graph | None = None

    def __init__(
        self, body: Callable[..., Any], optimizer: FusedAdamW, *, warmup: int = 3, pool: Any | None = None
    ) -> None:
        check_arguments(body, optimizer, warmup)
        self._body, self._optimizer, self._pool = body, optimizer, pool
        self._warmup_left = warmup
        self._inputs: list[Any] = []
        self._layout: Any = None
        self._frozen: Frozen | None = None
        self._result: Any = None
        self._reads: list[Any] = []  # memory that the graph reads
        self._side: SideStream | None = None

    @property
    def captured(self) -> bool:
        """Return whether there is a graph, which the next call replays."""
        return self._graph is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one training step on these inputs, which are copied to where the graph reads (asynchronously if pinned).

        Raises:
            ValueError: inputs of another nesting, shape or dtype than at the first call, or another constant.
            RuntimeError: something that the graph has frozen was changed since the capture, or the body cannot be
                captured; names it, and what to do.
        """
        check_nothing_observed(self._optimizer)
        self._take(args, kwargs)
        if self._warmup_left > 0:
            self._warmup_left -= 1
            return self._on_side().run(self._run)
        self._optimizer._take_written()
        graph, frozen = self._replayable()
        graph.replay()
        increment_version(frozen.params_with_grad)  # autograd cannot see that a graph changes them
        self._optimizer._replayed()
        return self._result

    def reset(self) -> None:
        """Forget the graph, after hyper-parameters, groups, states or inputs have changed. The next call is an eager
        step, and the one after it captures anew. Waits for the device, which may be reading what the graph used.
        """
        if self._optimizer._control.vector.is_cuda:
            torch.cuda.synchronize(self._optimizer._control.device)
        _LEFT.clear()
        self._graph = self._frozen = self._result = None
        self._inputs, self._reads, self._layout = [], [], None
        self._warmup_left = max(self._warmup_left, 1)  # that step builds tables, which no capture may do

    def __del__(self) -> None:
        if self._graph is not None and capturing(self._optimizer._control.device):
            _LEFT.append((self._graph, self._inputs, self._result, self._reads))
        elif self._graph is not None:
            self.reset()

    def _on_side(self) -> SideStream:
        """Return the stream of the parameters' device for eager steps and the capture."""
        device = self._optimizer._control.device
        if self._side is None or self._side.stream.device != device:
            self._side = SideStream(device)
        return self._side

    def _run(self) -> Any:
        self._optimizer.zero_grad()
        args, kwargs = pytree.tree_unflatten(self._inputs, self._layout)
        result = self._body(*args, **kwargs)
        return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)

    def _replayable(self) -> tuple[Graph, Frozen]:
        """Return the graph: checked if there is one, captured if not."""
        if self._graph is not None and self._frozen is not None:
            self._frozen.check()
            return self._graph, self._frozen
        counted, graph, reads = _Counted(), Graph(self._pool, self._on_side()), list[Any]()
        self._optimizer._listeners.append(counted)
        try:
            with _Capturing(self._optimizer, reads):
                self._result = graph.capture(self._run)
        finally:
            self._optimizer._listeners.remove(counted)
        if not counted.steps:
            raise RuntimeError(
                "CapturedStep: expected a body that calls optimizer.step(loss=loss), got one that does not step the "
                "optimizer given beside it; add the call, or pass the optimizer that it steps"
            )
        self._graph, self._frozen, self._reads = graph, Frozen(self._optimizer), reads
        return self._graph, self._frozen

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, layout = pytree.tree_flatten((args, kwargs))
        if self._layout is None:
            device = self._optimizer._control.device
            for leaf in leaves:
                check_constant(leaf)
            self._inputs = [
                leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves
            ]
            self._layout = layout
            return
        if layout != self._layout:
            raise ValueError(
                f"CapturedStep: expected inputs nested as {self._layout}, as at the first call, got {layout}; make a "
                "CapturedStep for each kind of batch"
            )
        for place, (own, leaf) in enumerate(zip(self._inputs, leaves, strict=True)):
            check_input(place, own, leaf)
            if isinstance(own, Tensor) and own is not leaf:
                own.copy_(leaf, non_blocking=True)


class _Capturing:
    """Context in which the optimizer is captured: what the graph reads goes into the list given here. A capture that
    fails has done nothing on the device, so that no loss is pending then, and gradients, which have no values, are
    cleared.
    """

    def __init__(self, optimizer: FusedAdamW, reads: list[Any]) -> None:
        self._optimizer, self._reads = optimizer, reads

    def __enter__(self) -> None:
        self._optimizer._engine.captures.append(self._reads)

    def __exit__(self, kind: Any, *_: object) -> None:
        self._optimizer._engine.captures.pop()
        if kind is not None:
            self._optimizer._control.observed = 0
            self._optimizer.zero_grad()


class _Counted:
    """Listener that counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def after_step(self) -> None:
        self.steps += 1

    def after_replay(self) -> None:
        """Do nothing: this does not listen during replays."""

    def after_restart(self) -> None:
        """Do nothing: the count goes on."""
