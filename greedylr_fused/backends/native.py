"""The compiled modules: loaded if they were built, with the reason if they were not."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

#: Written by the installation: why each module was built, or not.
BUILD_REPORT = Path(__file__).parent.parent / "_build.json"


def load(name: str) -> tuple[Any, str]:
    """The module `greedylr_fused.<name>`, or None, and why it cannot be used."""
    try:
        return importlib.import_module(f"greedylr_fused.{name}"), ""
    except ImportError as error:
        return None, f"greedylr_fused.{name} is not usable: {not_built(name) or error}"


def not_built(name: str) -> str | None:
    """The reason that the installation recorded for not building a module, None if it recorded none."""
    if not BUILD_REPORT.exists():
        return None
    report = json.loads(BUILD_REPORT.read_text()).get(name, {"built": True})
    return None if report["built"] else str(report["reason"])
