"""matplotlib, which only pictures need."""

from __future__ import annotations

import importlib
from typing import Any


def load() -> Any:
    """`matplotlib.pyplot`, told to draw into files.

    Raises:
        ValueError: it is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ValueError(f"got no matplotlib ({error}), which draws the picture; run: pip install matplotlib") from None
