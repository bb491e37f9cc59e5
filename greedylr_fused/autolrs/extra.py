"""The packages of the extra `autolrs`, imported when a search needs them: training without one needs neither."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_PACKAGES = ("numpy", "scipy", "sklearn")


def check_installed() -> None:
    """Look for the packages, and import none of them.

    Raises:
        ImportError: one is missing.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"AutoLRS: expected scipy and scikit-learn, got no module {package}; run: "
                "pip install greedylr_fused[autolrs]"
            )


def module(name: str) -> Any:
    """Return a module of these packages."""
    return importlib.import_module(name)
