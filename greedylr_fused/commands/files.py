"""What commands share: how a failure is told in one line, and matplotlib, which only pictures need."""

from __future__ import annotations

import importlib
from typing import Any


def told(error: Exception) -> str:
    """Its own words, which say what to do; the system's words about a file do not."""
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}; name a file that is there to be read, or one to be written in a "
            "folder that is there"
        )
    return str(error)


def load_pyplot() -> Any:
    """`matplotlib.pyplot`, told to draw into files.

    Raises:
        ValueError: it is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ValueError(f"got no matplotlib ({error}), which draws the picture; run: pip install matplotlib") from None
