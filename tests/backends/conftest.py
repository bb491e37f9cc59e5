"""The machine code of the CUDA kernels, as it lies in the module that was built."""

import os
import subprocess

import pytest
from support.machine_code import TOOLS, built_module, disassemble_once


@pytest.fixture(scope="session")
def extracted(tmp_path_factory):
    """Folder with what the module holds: machine code (.cubin) for each target and PTX for the newest."""
    module = built_module()
    folder = tmp_path_factory.mktemp("cuda")
    for option in ("-xelf", "-xptx"):
        command = [TOOLS / "cuobjdump", option, "all", module]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=60)
    return folder


@pytest.fixture(scope="session")
def kernels(extracted, tmp_path_factory):
    """The kernels for a target by symbol, disassembled when they are first asked for by any process of the run."""
    known, shared = {}, tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def of(target):
        if target not in known:
            found = list(extracted.glob(f"*.sm_{target}.cubin"))
            if not found:
                pytest.skip(f"the nvcc that built the module does not know sm_{target}")
            known[target] = disassemble_once(found[0], shared)
        return known[target]

    return of
