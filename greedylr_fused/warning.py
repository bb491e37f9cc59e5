"""Warnings, on the line of the user's own code."""

from __future__ import annotations

import sys
import warnings

#: Whose frames are passed over: a step is wrapped by hooks, schedulers, no_grad and the compiler's switch.
_WRAPPERS = ("greedylr_fused", "torch", "contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of what the nearest caller outside of this package and of PyTorch does."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
