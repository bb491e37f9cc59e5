"""Two fixtures: `gpu`, a GPU with each of its backends, and `machine`, the same and two rehearsals on a CPU, one by the
backend for it and one by the CUDA kernels, emulated.
"""

import pytest
import torch
from machines import Machine
from support import emulated

from greedylr_fused import available_backends

_ON_GPU = [pytest.param(("cuda", name), id=f"by-{name}", marks=pytest.mark.gpu) for name in ("cuda", "triton")]
_REHEARSAL = [pytest.param(("cpu", "cpu"), id="rehearsal"), pytest.param(("cpu", "cuda"), id="emulated")]


def _machine(request) -> Machine:
    device, backend = torch.device(request.param[0]), request.param[1]
    chosen = request.config.getoption("--backend")
    if chosen and backend not in chosen:
        pytest.skip(f"--backend chose {', '.join(chosen)}")
    if request.param == ("cpu", "cuda"):
        emulated.install(request.getfixturevalue("monkeypatch"))
    reason = available_backends(device)[backend]
    if reason is not None:
        pytest.skip(f"backend {backend} cannot run on {device}: {reason}")
    return Machine(device, backend)


@pytest.fixture(params=_ON_GPU)
def gpu(request) -> Machine:
    return _machine(request)


@pytest.fixture(params=[*_ON_GPU, *_REHEARSAL])
def machine(request) -> Machine:
    return _machine(request)
