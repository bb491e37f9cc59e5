"""The look before each step: does the table still describe the optimizer, and where do the gradients lie?

A table holds addresses, and between any two steps Python may replace, move, resize or free what lies there.
`csrc/host/watch.cpp` looks through DLPack's C functions, in a tenth of the time and less; the class here is its
specification, and stands in for it where it was not built and before PyTorch 2.10.

It compares by identity the groups' parameters and `amsgrad`, and the keys, values and order of the state dictionaries;
by address, shape, strides and dtype the memory of parameters and moments, by address alone that of step counts.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors import direct
from greedylr_fused.tensors.dtensor import local
from greedylr_fused.tensors.entry import Entry
from greedylr_fused.tensors.formats import CORRECTED, EMPTY

#: What a look may find; any of them together, but REBUILD alone.
MOVED = 1  # an address in the row changed
COUNT = 2  # a gradient came or went
HYPER = 4  # hyper-parameters may have changed
NEEDS_COPY = 8  # a gradient cannot be read as it is: see `Watch.odd`
REBUILD = 16  # the table describes something else

_HYPER = ("betas", "eps", "weight_decay", "maximize", CORRECTED)

_native: Any = None
_import_error = ""
try:
    _native = importlib.import_module("greedylr_fused._host")
except ImportError as error:
    _import_error = str(error)


class Watch:
    """The optimizer as a table was built for it, to compare with at each look.

    Args:
        entries: the table's, in its order; their parameters and state dictionaries are kept alive, what lies in these
            is not.
        stateless: parameters without state, which the table leaves out.
        groups, state: the optimizer's, as the table was built for them.
        row: int64 [N] in host memory, N = len(entries); the address of each gradient is written there, 0 for none.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        stateless: Sequence[Tensor],
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        row: Tensor,
    ) -> None:
        self._entries, self._stateless = list(entries), list(stateless)
        self._specs = [entry.spec for entry in entries]
        self._groups = [(group["amsgrad"], list(group["params"])) for group in groups]
        self._hyper = [[_fixed(group.get(name, False)) for name in _HYPER] for group in groups]
        self._own = [(param, param_state, _names(param_state)) for param, param_state in state.items()]
        self._stored = self._stored_now()
        self._memory = self._memory_now()
        self._row_tensor = row  # keeps alive what `_row` writes to
        self._row = (ctypes.c_int64 * row.numel()).from_address(row.data_ptr())
        self._odd: list[int] = []

    def look(self, groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> int:
        """Return what changed since the last look, and write to the row what moved."""
        self._odd = []
        same = self._same_groups(groups) and self._same_states(state) and self._memory_now() == self._memory
        if not same or any(param.grad is not None for param in self._stateless):
            return REBUILD
        flags = self._hyper_flags(groups)
        for i in range(len(self._entries)):
            address = self._address_of(i)
            if address is None:
                self._odd.append(i)
                flags |= NEEDS_COPY
            else:
                flags |= self.put(i, address)
        return flags

    def odd(self) -> list[int]:
        """Return the tensors whose gradients the last look could not take: of another dtype, shape or strides, with a
        sign or conjugation yet to be applied, without memory, or distributed in another way. It left their addresses.
        """
        return self._odd

    def put(self, i: int, address: int) -> int:
        """Write the address of gradient i; return what that changed."""
        before = self._row[i]
        self._row[i] = address
        return (before != address) * MOVED | ((before == 0) != (address == 0)) * COUNT

    def accept(self, i: int, gradient: Any) -> None:
        """Accept from now on gradients of parameter i that are distributed like this one."""
        self._specs[i] = gradient._spec

    def params_with_grad(self) -> list[Tensor]:
        """Return the parameters that have a gradient, in the table's order."""
        return [entry.param for entry, address in zip(self._entries, self._row, strict=True) if address]

    def _same_groups(self, groups: Sequence[dict[str, Any]]) -> bool:
        return len(groups) == len(self._groups) and all(
            group["amsgrad"] is amsgrad and _identical(group["params"], params)
            for group, (amsgrad, params) in zip(groups, self._groups, strict=True)
        )

    def _hyper_flags(self, groups: Sequence[dict[str, Any]]) -> int:
        flags = 0
        for group, known in zip(groups, self._hyper, strict=True):
            for k, name in enumerate(_HYPER):
                value = group.get(name, False)  # the last is there only where it is asked for
                if value is not known[k] or known[k] is None:
                    flags, known[k] = HYPER, _fixed(value)
        return flags

    def _same_states(self, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        return (
            len(state) == len(self._own)
            and all(
                param is known and param_state is known_own and _identical(_names(param_state), keys)
                for (param, param_state), (known, known_own, keys) in zip(state.items(), self._own, strict=True)
            )
            and self._stored_now() == self._stored
        )

    def _stored_now(self) -> list[int]:
        return [id(entry.state[name]) for entry in self._entries for name in (*entry.stored, *entry.counts)]

    def _memory_now(self) -> list[Any]:
        params = [local(entry.param) for entry in self._entries]
        stored = [entry.memory_of(name) for entry in self._entries for name in entry.stored]
        signs = [(param.is_neg(), param.is_conj()) for param in params]
        counts = [entry.state[name].data_ptr() for entry in self._entries for name in entry.counts]
        return [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in (*params, *stored)] + signs + counts

    def _address_of(self, i: int) -> int | None:
        """Return the address of gradient i: 0 without one, None if a kernel cannot read it as it is."""
        entry, grad = self._entries[i], self._entries[i].param.grad
        if grad is None:
            return 0
        if entry.spec is not None:
            if getattr(grad, "_spec", None) is not self._specs[i]:
                return None
            grad = local(grad)
        if grad.layout is not torch.strided or not entry.fits(grad):
            return None
        return EMPTY if grad.numel() == 0 else grad.data_ptr() or None


def watching(*args: Any) -> Any:
    """Return a compiled `Watch` if there is one and it can see these tensors, otherwise the one above."""
    if unavailable() is None:
        try:
            return _native.Watch(Tensor.__dlpack_c_exchange_api__, _direct(), *args)
        except ValueError:  # a device or type that DLPack has no word for, or a state that is no dictionary
            pass
    return Watch(*args)


@functools.cache
def _direct() -> tuple[int, ...] | None:
    return direct.find()


def unavailable() -> str | None:
    """Return why the compiled `Watch` is not used, or None if it is."""
    if _native is None:
        return f"greedylr_fused._host is not usable: {_import_error}"
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return f"PyTorch {torch.__version__} does not offer DLPack's C functions, 2.10 does"
    return None


def _identical(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _names(param_state: Any) -> list[str]:
    """Return the keys of a state; none for one that is no dictionary, which belongs to no parameter."""
    return list(param_state) if isinstance(param_state, dict) else []


def _fixed(value: Any) -> Any:
    """Return the value if the same object always has it, otherwise None."""
    numbers = value if type(value) is tuple else (value,)
    return value if all(type(number) in (float, int, bool) for number in numbers) else None
