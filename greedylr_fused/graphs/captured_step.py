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
from greedylr_fused.device_schedule import DeviceSchedule
from greedylr_fused.graphs.checks import check_arguments, check_constant, check_input, check_nothing_observed
from greedylr_fused.graphs.frozen import Frozen, frozen
from greedylr_fused.graphs.stepped import Capturing, Counted, Stepped
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
        optimizer: the one that the body steps, with parameters on a GPU; or the DeviceSchedule that drives what it
            steps. Of an optimizer that is no FusedAdamW the step must be one that can be captured, as with
            `capturable=True`, and, before each replay, all its options but the LR are compared.
        warmup: eager calls before the capture, >= 1, on another stream, as torch.cuda.graph needs them. Default: 3.
        pool: memory pool to share with other graphs, as `torch.cuda.graph_pool_handle()` returns it. Default: its own.

    Raises:
        TypeError, ValueError: no FusedAdamW or DeviceSchedule, no function, or no number of calls.
        RuntimeError: the parameters are not on a GPU, or on several.
    """

    _graph: Graph | None = None

    def __init__(
        self,
        body: Callable[..., Any],
        optimizer: FusedAdamW | DeviceSchedule,
        *,
        warmup: int = 3,
        pool: Any | None = None,
    ) -> None:
        check_arguments(body, optimizer, warmup)
        self._body, self._stepped, self._pool = body, Stepped(optimizer), pool
        self._warmup_left = warmup
        self._inputs: list[Any] = []
        self._layout: Any = None
        self._frozen: list[Frozen] = []
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
        check_nothing_observed(self._stepped)
        self._take(args, kwargs)
        if self._warmup_left > 0:
            self._warmup_left -= 1
            return self._on_side().run(self._run)
        self._stepped.take_written()
        graph = self._replayable()
        graph.replay()
        for part in self._frozen:
            increment_version(part.params_with_grad)  # autograd cannot see that a graph changes them
        self._stepped.replayed()
        return self._result

    def reset(self) -> None:
        """Forget the graph, after hyper-parameters, groups, states or inputs have changed. The next call is an eager
        step, and the one after it captures anew. Waits for the device, which may be reading what the graph used.
        """
        if self._stepped.device.type == "cuda":
            torch.cuda.synchronize(self._stepped.device)
        _LEFT.clear()
        self._graph = self._result = None
        self._inputs, self._reads, self._frozen, self._layout = [], [], [], None
        self._warmup_left = max(self._warmup_left, 1)  # that step builds tables, which no capture may do

    def __del__(self) -> None:
        if self._graph is not None and capturing(self._stepped.device):
            _LEFT.append((self._graph, self._inputs, self._result, self._reads))
        elif self._graph is not None:
            self.reset()

    def _on_side(self) -> SideStream:
        """Return the stream of the parameters' device for eager steps and the capture."""
        device = self._stepped.device
        if self._side is None or self._side.stream.device != device:
            self._side = SideStream(device)
        return self._side

    def _run(self) -> Any:
        self._stepped.zero_grad()
        args, kwargs = pytree.tree_unflatten(self._inputs, self._layout)
        result = self._body(*args, **kwargs)
        return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)

    def _replayable(self) -> Graph:
        """Return the graph: checked if there is one, captured if not."""
        if self._graph is not None:
            for part in self._frozen:
                part.check()
            return self._graph
        graph, reads = Graph(self._pool, self._on_side()), list[Any]()
        deciders = self._stepped.deciders
        counts = [Counted() for _ in deciders]
        for decider, counted in zip(deciders, counts, strict=True):
            decider._listeners.append(counted)
        try:
            with Capturing(self._stepped, reads):
                self._result = graph.capture(self._run)
        finally:
            for decider, counted in zip(deciders, counts, strict=True):
                decider._listeners.remove(counted)
        if not all(counted.steps for counted in counts):
            raise RuntimeError(
                "CapturedStep: expected a body that calls optimizer.step(loss=loss), got one that does not step the "
                "optimizer given beside it; add the call, or pass the optimizer that it steps"
            )
        self._graph, self._frozen, self._reads = graph, frozen(self._stepped), reads
        return graph

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, layout = pytree.tree_flatten((args, kwargs))
        if self._layout is None:
            device = self._stepped.device
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
