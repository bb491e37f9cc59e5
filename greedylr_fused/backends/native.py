"""Loading of the compiled modules, with the reason for one that cannot be used."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from greedylr_fused.control import SLOTS
from greedylr_fused.tensors import CHUNK, DTYPES, MIXES, BackupTable, DType, Row, TensorTable

#: Written by the installation: whether each module was built, and why not.
BUILD_REPORT = Path(__file__).parent.parent / "_build.json"


def load(name: str) -> tuple[Any, str]:
    """Return the module `greedylr_fused.<name>`, or None, and why it cannot be used (empty if it can)."""
    try:
        module = importlib.import_module(f"greedylr_fused.{name}")
    except ImportError as error:
        return None, f"greedylr_fused.{name} is not usable: {not_built(name) or error}"
    if not reads_these_tables(module):
        return None, (
            f"greedylr_fused.{name} is not usable: it was built from other sources than this Python code and would "
            "misread its tables; install the package again, or run python setup.py build_ext --inplace"
        )
    return module, ""


def reads_these_tables(module: Any) -> bool:
    """Return whether a module was compiled for the slots, rows and mixes that Python fills in; an old one is not."""
    mixes = {tuple(map(int, mix)) for mix in MIXES}
    return (
        getattr(module, "SLOTS", None) == SLOTS
        and getattr(module, "ROWS", None) == tuple(Row.__members__)
        and set(getattr(module, "MIXES", ())) == mixes
    )


def described(table: TensorTable) -> dict[str, Any]:
    """Return a table as the compiled modules take it: addresses, sizes and launches."""
    tensors = (
        "ptrs",
        "numel",
        "group",
        "hyper",
        "norm_weight",
        "chunk_tensor",
        "chunk_index",
        "control",
        "curve",
    )
    return {name: getattr(table, name).data_ptr() for name in tensors} | {
        "n_tensors": table.numel.numel(),
        "n_chunks": table.chunk_tensor.numel(),
        "chunk": table.chunk,
        "l1": table.l1,
        "tuned": table.tuned.tuner is not None,
        "launches": [(run.param, run.grad, run.state, run.first, run.count) for run in table.launches],
    }


def copied(backup: BackupTable) -> tuple[int, ...]:
    """Return a backup's table as the compiled modules take it."""
    tensors = (backup.addresses, backup.sizes, backup.chunk_tensor, backup.chunk_index)
    return (*(tensor.data_ptr() for tensor in tensors), backup.sizes.numel(), backup.chunk_tensor.numel(), CHUNK)


def observation(loss: Tensor, weight: float | Tensor) -> tuple[int, int, float, int, int]:
    """Return a loss and its weight as the compiled modules take them."""
    if isinstance(weight, Tensor):
        return (*place_of(loss), 0.0, weight.data_ptr(), int(DTYPES.get(weight.dtype, DType.I64)))
    return (*place_of(loss), weight, 0, 0)


def place_of(loss: Tensor | None) -> tuple[int, int]:
    """Return a loss's address and its dtype's code, as the compiled modules take it; address 0 for none."""
    return (0, 0) if loss is None else (loss.data_ptr(), int(DTYPES[loss.dtype]))


def not_built(name: str) -> str | None:
    """Return the reason that the installation recorded for not building a module, None if it recorded none."""
    if not BUILD_REPORT.exists():
        return None
    report = json.loads(BUILD_REPORT.read_text()).get(name, {"built": True})
    return None if report["built"] else str(report["reason"])
