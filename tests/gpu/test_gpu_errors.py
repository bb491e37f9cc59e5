"""What goes wrong on the GPU comes back as a Python exception."""

import os
import subprocess
import sys

import pytest
import torch

from greedylr_fused import FusedAdamW, available_backends
from greedylr_fused.tensors.formats import Row

FAULT = """
import sys
import torch
from greedylr_fused import FusedAdamW
from greedylr_fused.formats import Row

param = torch.nn.Parameter(torch.randn(1000, device="cuda"))
param.grad = torch.randn(1000, device="cuda")
opt = FusedAdamW([param], backend=sys.argv[1])
opt.step()
opt._engine.table.ptrs[Row.EXP_AVG, 0] = 16  # an address that nobody has
for attempt in ("update", "synchronize", "update"):
    try:
        opt._engine.backend.update() if attempt == "update" else torch.cuda.synchronize()
    except RuntimeError as error:
        print(attempt, "raised", error)
"""


def test_a_fault_of_a_kernel_is_raised(gpu):
    """In a process of its own: after it the device cannot be used there. The backend's next launch says so, too."""
    done = subprocess.run(
        [sys.executable, "-c", FAULT, gpu.backend],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    raised = [line for line in done.stdout.splitlines() if " raised " in line]
    assert [line.split()[0] for line in raised][-2:] == ["synchronize", "update"], done.stdout + done.stderr
    assert all("illegal memory access" in line for line in raised if line.startswith("update"))


def test_a_device_that_is_not_there(gpu):
    """Named by index: its reason is said, and a request for it raises."""
    missing = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(RuntimeError):
        FusedAdamW([torch.nn.Parameter(torch.zeros(3, device=missing))], backend=gpu.backend)
    assert isinstance(available_backends(missing), dict)
    torch.zeros(3, device=gpu.device).add_(1)  # the one that is there still works


def test_parameters_on_two_devices_are_refused(machine):
    params = [torch.nn.Parameter(torch.zeros(3, device=device)) for device in (machine.device, "cpu", "meta")]
    if not machine.on_gpu:
        del params[1]  # the same device
    for param in params:
        param.grad = torch.zeros_like(param)
    opt = FusedAdamW(params, backend=machine.backend)
    with pytest.raises(RuntimeError, match="expected parameters on one device, got ones on"):
        opt.step()


def test_where_the_fault_is_planted(machine):
    """The table's row of first moments is what the kernels follow."""
    param = torch.nn.Parameter(torch.randn(10, device=machine.device))
    param.grad = torch.randn_like(param)
    opt = FusedAdamW([param], backend=machine.backend)
    opt.step()
    assert opt._engine.table.ptrs[Row.EXP_AVG, 0].item() == opt.state[param]["exp_avg"].data_ptr()
    opt._engine.backend.update()
    assert opt._control.slot("step").item() == 2
