"""Backend choice: resolved once per optimizer, with a reason for every backend that was passed over."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from greedylr_fused.backends.base import Backend
from greedylr_fused.backends.cpu import CpuBackend
from greedylr_fused.backends.cuda import CudaBackend
from greedylr_fused.backends.reference import ReferenceBackend
from greedylr_fused.backends.triton import TritonBackend

#: In order of preference.
_ORDER: tuple[type[Backend], ...] = (CpuBackend, CudaBackend, TritonBackend, ReferenceBackend)
BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in _ORDER}
NAMES = ("auto", *BACKENDS)


@dataclass(frozen=True)
class Choice:
    """A resolved backend and why the ones preferred to it were not taken."""

    backend: type[Backend]
    passed_over: dict[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.passed_over.items())
        return self.backend.name + (f" ({reasons})" if reasons else "")


def available_backends(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Return every backend in order of preference, with None if it can run on the device, otherwise why it cannot."""
    return {name: backend.unavailable(torch.device(device)) for name, backend in BACKENDS.items()}


def resolve(name: str, device: torch.device) -> Choice:
    """Return the backend of that name, or with "auto" the first that can run on the device.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named backend cannot run there; says why.
    """
    check_name(name)
    if name == "auto":
        passed_over: dict[str, str] = {}
        for candidate, backend in BACKENDS.items():  # one after another: to ask Triton is to import and try it
            reason = backend.unavailable(device)
            if reason is None:
                return Choice(backend, passed_over)
            passed_over[candidate] = reason
    reason = BACKENDS[name].unavailable(device)
    if reason is not None:
        usable = [other for other, why in available_backends(device).items() if why is None]
        raise RuntimeError(
            f'backend="{name}" cannot run on {device}: {reason}. Usable there: {", ".join(usable)}; '
            'or pass backend="auto"'
        )
    return Choice(BACKENDS[name], {})


def check_name(name: str) -> None:
    """Refuse an unknown backend name."""
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}; leave it out for auto")
