"""Optimizers by name: an operator in a compiled graph can be given tensors and texts, but no optimizer."""

from __future__ import annotations

import itertools
import weakref
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
        nothing: None, to be assigned to `grad`. The compiler of PyTorch 2.13 keeps one None for all in a trace, and if
            that one is assigned and read again, notes where it came from in it: other traces then look for it there.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.moments: dict[int, list[Tensor]] = {}
        self.owned: dict[tuple[int, ...], list[Tensor]] = {}
        self.nothing = None

    def forget(self) -> None:
        """Parameters or moments were replaced: traces that read them are outdated."""
        self.moments.clear()
        self.owned.clear()


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
