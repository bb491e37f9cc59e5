"""The engine: which backend runs, and over which table."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused import options
from greedylr_fused.backends import Backend, Choice, resolve
from greedylr_fused.control import Control
from greedylr_fused.packing import Entry, Table


class Engine:
    """Keeps a table and a backend for the parameters that have state, and builds new ones when they change.

    Args:
        backend: name as in `FusedAdamW(backend=...)`.
        device: where the parameters lie now; the choice is made anew if they move.
        state_dtype: storage type of new moments, None for the parameter's.
    """

    def __init__(self, backend: str, device: torch.device, state_dtype: torch.dtype | None) -> None:
        self.name = backend
        self.state_dtype = state_dtype
        self.device = device
        self.choice: Choice = resolve(backend, device)
        self.table: Table | None = None
        self.backend: Backend | None = None
        self._stateless: list[Tensor] = []
        self._shape: list[tuple[Any, ...]] = []
        self._states: list[dict[str, Any]] = []

    def ready(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], control: Control) -> Backend:
        """The backend over an up-to-date table."""
        shape = [(group["amsgrad"], *map(id, group["params"])) for group in groups]
        newcomers = any(param.grad is not None for param in self._stateless)
        replaced = shape != self._shape or not self._holds(state)
        if self.table is None or newcomers or replaced or not self.table.refresh(groups):
            self._shape = shape
            self._build(groups, state, control)
            self._states = list(state.values())
        assert self.backend is not None
        return self.backend

    def _holds(self, state: dict[Tensor, Any]) -> bool:
        """Whether the states are the dictionaries that the table was built from. They can be replaced by hand."""
        return len(state) == len(self._states) and all(map(operator.is_, state.values(), self._states))

    def release(self) -> None:
        """After the step: see `Table.release`."""
        if self.table is not None:
            self.table.release()

    def discard(self) -> None:
        """Forget the table: parameters, groups or states were replaced."""
        self.table = self.backend = None

    def init_states(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        """Create the state of every parameter that has a gradient, with the names, shapes and strides of torch's."""
        for group in groups:
            for param in group["params"]:
                known = state.get(param)
                if param.grad is not None and not known:
                    state[param] = known = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
                    known["exp_avg"] = self._zeros(param)
                    known["exp_avg_sq"] = self._zeros(param)
                if known and group["amsgrad"] and "max_exp_avg_sq" not in known:
                    known["max_exp_avg_sq"] = torch.zeros_like(known["exp_avg_sq"])

    def _zeros(self, param: Tensor) -> Tensor:
        dtype = param.dtype if param.is_complex() else self.state_dtype
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)

    def _build(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], control: Control) -> None:
        if len(groups) != control.n_groups:
            raise RuntimeError(
                f"FusedAdamW: param_groups has {len(groups)} entries, allowed are the {control.n_groups} that came "
                "through the constructor and add_param_group(); use add_param_group()"
            )
        owner: dict[Tensor, int] = {}  # a parameter listed twice is stepped once
        for index, group in enumerate(groups):
            for param in group["params"]:
                owner.setdefault(param, index)
        options.check_device(list(owner))
        if control.device != self.device:
            self.device = control.device
            self.choice = resolve(self.name, self.device)
        self.init_states(groups, state)
        self._stateless = [param for param in owner if not state.get(param)]
        amsgrad = [group["amsgrad"] for group in groups]
        entries = [Entry(p, state[p], index, amsgrad[index]) for p, index in owner.items() if state.get(p)]
        self.table = Table(entries, control, self.choice.backend.chunk_size)
        self.backend = self.choice.backend(self.table)
        self.table.refresh(groups)
