"""Optimizers by name: an operator in a compiled graph can be given tensors and texts, but no optimizer."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW

_BY_NAME: weakref.WeakValueDictionary[str, FusedAdamW] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class Traced:
    """What a traced step reads of one optimizer. It is filled at trace time, and emptied where that becomes outdated.

    Attributes:
        params: of all groups, in order.
        moments: of those parameters that a trace has found gradients of, by position.
        owned: by the positions of the parameters that are stepped: their memory and that of their moments, as the
            operator found them last.
        observed: at trace time, whether `observe` was traced since this was last set to False.
        nothing: None, to be assigned to `grad`. The compiler of PyTorch 2.13 keeps one None for all in a trace, and if
            that one is assigned and read again, notes where it came from in it: other traces then look for it there.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.moments: dict[int, list[Tensor]] = {}
        self.owned: dict[tuple[int, ...], list[Tensor]] = {}
        self.observed = False
        self.nothing = None

    def forget(self, params: list[Tensor]) -> None:
        """Parameters or moments were replaced, and these are the parameters now: traces that read the former ones are
        outdated, be it to clear their gradients.
        """
        self.moments.clear()
        self.owned.clear()
        if self.params and not same(self.params, params):
            self.params = params


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether both hold the same tensors in the same order."""
    return len(a) == len(b) and all(one is other for one, other in zip(a, b, strict=True))


def params_of(optimizer: FusedAdamW) -> list[Tensor]:
    """Of all groups, in order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def named(optimizer: FusedAdamW) -> str:
    """A name that no other optimizer of this process has, or will have, under which `found` finds it while it lives."""
    name = f"optimizer {next(_NUMBERS)}"
    _BY_NAME[name] = optimizer
    return name


def found(name: str) -> FusedAdamW:
    """The optimizer of that name.

    Raises:
        RuntimeError: it is gone.
    """
    optimizer = _BY_NAME.get(name)
    if optimizer is None:
        raise RuntimeError(
            f"FusedAdamW: got a compiled step of {name}, which no longer exists, allowed is that of a live optimizer; "
            "keep the optimizer as long as what was compiled with it, and compile anew for another"
        )
    return optimizer
