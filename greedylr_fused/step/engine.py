"""The engine: which backend runs, and over which table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from greedylr_fused.backends import Backend, Choice, resolve
from greedylr_fused.capture import capturing, keep, outside_inference
from greedylr_fused.control import Control
from greedylr_fused.ranks import Ranks
from greedylr_fused.step import flow, options
from greedylr_fused.tensors import (
    REBUILD,
    Backup,
    Copies,
    Entry,
    TensorTable,
    check_memory,
    conversion,
    local,
    storage,
    storage_of,
    tuning,
    watching,
)


class Engine:
    """Table and backend for the parameters that have state, built anew when those change.

    Args:
        backend: name as in `FusedAdamW(backend=...)`.
        device: where the parameters lie now; if they move, a backend is chosen anew.
        state_dtype: storage type of new moments, None for the parameter's.
        ranks: the processes that decide together.
        tuned: whether there is a tuner.

    Attributes:
        backup: what the trials of a level search go back to; None without one, or once it is over.
        captures: lists that keep alive what captured graphs read; a capture adds to the last one. The first, for graphs
            that users capture, lives as long as the engine; a CapturedStep appends one while it captures, and keeps it
            with its graph.
    """

    def __init__(
        self, backend: str, device: torch.device, state_dtype: torch.dtype | None, ranks: Ranks, *, tuned: bool
    ) -> None:
        self.name = backend
        self.ranks, self.tuned = ranks, tuned
        self.state_dtype = state_dtype
        self.device = device
        self.choice: Choice = resolve(backend, device)
        self.table: TensorTable | None = None
        self.backend: Backend | None = None
        self.watch: Any = None
        self.copies = Copies()
        self.backup: Backup | None = None
        self.captures: list[list[Any]] = [[]]
        self.shown: Any = WeakTensorKeyDictionary()  # step counts that a state_dict() was returned with
        self.has_begun = False  # nothing was stepped, loaded or materialised yet

    def find_ranks(self, params: Sequence[Tensor]) -> None:
        """Find the ranks again if torch.distributed was initialised or shut down since, which changes their shares."""
        if self.ranks.moved:
            self.ranks.find(params)
            self.discard()

    def ready(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any]) -> Backend | None:
        """Return the backend with its table brought up to date; None if it must be `rebuilt`."""
        known = self.watch is not None and not self.ranks.moved
        return self.backend if known and self._refreshed(groups, state) else None

    def rebuilt(
        self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], control: Control, snapshot: str | None = None
    ) -> Backend:
        """Return a backend over a new table.

        Args:
            groups: the optimizer's.
            state: the optimizer's.
            control: the optimizer's.
            snapshot: where a search keeps its backup, as of `Backup`; None where there is nothing to go back to.
        """
        self.discard()
        self._build(groups, state, control)
        if snapshot is not None:
            try:
                self._place_backup(snapshot)
            except BaseException:  # such as a lack of memory: no step may search without it
                self.discard()
                raise
        self.has_begun = True
        assert self.backend is not None
        if not self._refreshed(groups, state):
            raise RuntimeError(
                "FusedAdamW.step(): expected parameters and states that change between steps alone, got ones that "
                "changed while they were read; stop what changes them, such as another thread, and step again"
            )
        return self.backend

    def look(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any]) -> int:
        """Return what a look at all tensors finds (watch.py), kept for the next step; REBUILD if the table is stale."""
        if self.watch is None or self.table is None or self.ranks.moved or self.copies.moved():
            return REBUILD
        flags: int = self.watch.look(groups, state)
        self.table.remember(flags)
        return flags

    def _refreshed(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any]) -> bool:
        assert self.table is not None and self.backend is not None
        if self.table.sharded:
            with self._subclass_overrides_off():
                flags = self.watch.look(groups, state)
        else:
            flags = self.watch.look(groups, state)
        stale = flags & REBUILD or self.copies.moved()
        captures = self.captures[-1] if capturing(self.table.device) else None
        if captures is not None:
            captures += [self.table, self.backend, self.backup and self.backup.table]
        return not stale and self.table.refresh(self.watch, flags, groups, self.backend.send, captures)

    @staticmethod
    def _subclass_overrides_off() -> contextlib.AbstractContextManager[None]:
        """Turn overrides off: DTensor has none, but looking for them takes as long as reading its gradient."""
        return torch._C.DisableTorchFunctionSubclass()

    def release(self) -> None:
        """Release the table after a step; see `TensorTable.release`."""
        if self.table is not None:
            self.table.release()

    def back_up(self) -> None:
        """Do, after `release`, what a search's control asks the device for: take the backup, put it back or, at nearly
        every step, nothing. The host does not know which. After a step that failed before its control nothing is asked.
        """
        table = None if self.backup is None else self.backup.table
        if table is not None and self.backend is not None and self.backend.table.closes:
            table.refresh()
            self.backend.backup(table)
            table.release()

    def end_search(self) -> None:
        """Let the backup go: the search is over. Captured graphs keep what they copy from and to."""
        if self.backup is not None and not capturing(self.device):
            self.backup.drop()
            self.backup = None

    @torch.no_grad()
    def _place_backup(self, snapshot: str) -> None:
        """Make the backup one of the new table; what was kept stays, wherever its tensors lie by now."""
        assert self.table is not None
        backup = Backup(snapshot) if self.backup is None else self.backup
        backup.place(self.table, self.copies)
        self.backup = backup

    def observe(self, loss: Any, weight: Any, control: Control) -> None:
        """Add `weight * loss` to what is pending in the control."""
        flow.observe(loss, weight, self.backend, control)
        self.keep(loss, weight)

    def keep(self, *values: Any) -> None:
        """Keep losses and weights for the graph being captured."""
        keep(self.captures[-1], self.device, *values)

    @property
    def captured(self) -> bool:
        """Return whether anybody captured a graph, which may be replayed."""
        return bool(self.captures[0]) or (self.table is not None and self.table.captured)

    @property
    def lent(self) -> bool:
        """Return whether a CapturedStep is capturing."""
        return len(self.captures) > 1

    def measure_norms(self, params: Sequence[Tensor], control: Control) -> None:
        """Let each step from now on measure the norms of all gradients: see `FusedAdamW._measure_norms`."""
        if control.measures_l1:
            return
        if self.captured:
            raise RuntimeError(
                "Recorder(grad_norms=True): expected a call before a CUDA graph is captured, got one after; replays "
                "would not measure the norms: construct the recorder first"
            )
        self.ranks.any(params, True)  # all ranks or none, as they add up other slots from now on
        control.measures_l1 = True
        self.discard()

    def discard(self) -> None:
        """Forget the table: parameters, groups or states were replaced. The current stream may still read its memory,
        which another one allocated.
        """
        if self.table is not None and self.backend is not None and self.table.device.type == "cuda":
            stream = torch.cuda.current_stream(self.table.device)
            for memory in (*self.table.memory, *self.backend.memory):
                memory.record_stream(stream)
        self.table = self.backend = self.watch = None

    @outside_inference
    def init_states(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], *, of_all: bool = False) -> None:
        """Create the state of every parameter that has a gradient, with the names, shapes and strides of torch's.

        Args:
            groups: the optimizer's.
            state: the optimizer's.
            of_all: whether also of those that could have a gradient.

        Raises:
            RuntimeError, TypeError: a parameter is refused (see `check_memory`); then no state was made.
        """
        wanted = [
            (param, group)
            for group in groups
            for param in group["params"]
            if param.grad is not None or state.get(param) or (of_all and param.requires_grad)
        ]
        for param, group in wanted:
            check_memory("a parameter", param)
            own = storage_of(param, group, self.state_dtype)
            storage.check_kept(param, state.get(param) or {}, own)
            if self.tuned:
                tuning.check(param, own)
        for param, group in wanted:
            known, own = state.get(param), storage_of(param, group, self.state_dtype)
            if not known:
                count = torch.zeros((), dtype=torch.float32, device=param.device)
                state[param] = known = storage.new_state(param, count, own)  # complete, whatever interrupts this
            if group["amsgrad"] and not {"max_exp_avg_sq", "exp_avg_q"} & known.keys():
                known["max_exp_avg_sq"] = torch.zeros_like(known["exp_avg_sq"])
            conversion.follow(known, param, own)
            tuning.follow(known, param, tuned=self.tuned)

    def materialise(
        self,
        groups: Sequence[dict[str, Any]],
        state: dict[Tensor, Any],
        zeroed: Callable[[Sequence[dict[str, Any]]], bool],
        control: Control,
    ) -> bool:
        """Return whether this step without a loss is distributed checkpointing's, and if so create the state: a step
        with LR 0 and zero gradients is how it makes an optimizer create that.

        Any other first step at LR 0 differs only in its gradients, which are read in that one step. A nonzero gradient
        on one rank makes it a step on all ranks, unless the schedule needs a loss, which this step was not given.

        Args:
            groups: the optimizer's parameter groups.
            state: its state.
            zeroed: returns whether the host wrote LR 0 to all groups.
            control: tells whether the schedule needs a loss, and whether losses were observed.
        """
        if state or not zeroed(groups):
            return False
        params = [param for group in groups for param in group["params"]]
        if self.has_begun and not params:
            return False
        needs_loss = control.needs_loss
        asks = not needs_loss and not self.has_begun  # as every other rank asks, with gradients or without parameters
        if not needs_loss or control.observed:
            # The part on this rank: on the whole of a DTensor all ranks would have to ask, which may not all be here.
            grads = (local(param.grad) for param in params if param.grad is not None)
            real = any(grad.is_sparse or bool(grad.any()) for grad in grads)
            if self.ranks.any(params, real) if asks else real:
                return False
        self.has_begun = True
        self.init_states(groups, state)
        return True

    @outside_inference
    def _build(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], control: Control) -> None:
        owner: dict[Tensor, tuple[int, int]] = {}  # group and number; a parameter listed twice is stepped once
        listed = ((index, param) for index, group in enumerate(groups) for param in group["params"])
        for number, (index, param) in enumerate(listed):
            owner.setdefault(param, (index, number))
        options.check_device(list(owner))
        self.ranks.find(list(owner))
        if control.device != self.device:
            self.device = control.device
            self.choice = resolve(self.name, self.device)
        self.init_states(groups, state)
        stateless = [param for param in owner if not state.get(param)]
        amsgrad = [group["amsgrad"] for group in groups]
        share = self.ranks.norm_weight
        entries = [
            Entry(param, state[param], index, number, amsgrad[index], share(param))
            for param, (index, number) in owner.items()
            if state.get(param)
        ]
        backend = self.choice.backend
        self.table = table = TensorTable(entries, control, backend.chunk_size, self.copies, backend.writes_copies)
        self.backend = backend(table)
        self.watch = watching(table.entries, stateless, groups, state, table.row)
