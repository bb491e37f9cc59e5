"""How often a step makes the host wait for the device."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import Step

#: What hands a value of a tensor to the host.
READS = frozenset(
    f"aten::{name}" for name in ("_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "item")
)
_WARNING = "called a synchronizing"


def per_step(step: Step, device: torch.device, steps: int = 4) -> float:
    """Waits per call of `step`, which is called a few times.

    On a GPU those that PyTorch's sync-debug mode sees; on a CPU, where nothing waits, the operations that would.
    """
    step()
    return (_on_gpu if device.type == "cuda" else _reads)(step, steps) / steps


def _on_gpu(step: Step, steps: int) -> int:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(_WARNING in str(warning.message) for warning in caught)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in READS
        return func(*args, **(kwargs or {}))


def _reads(step: Step, steps: int) -> int:
    with _Counting() as counting:
        for _ in range(steps):
            step()
    return counting.count
