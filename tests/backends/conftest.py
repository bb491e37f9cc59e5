"""The machine code of the CUDA kernels, as it lies in the module that was built."""

import subprocess

import pytest
from support.machine_code import TOOLS, built_module, disassemble


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
def kernels(extracted):
    """The kernels for a target by symbol, disassembled when they are first asked for."""
    known = {}

    def of(target):
        if target not in known:
            found = list(extracted.glob(f"*.sm_{target}.cubin"))
            if not found:
                pytest.skip(f"the nvcc that built the module does not know sm_{target}")
            known[target] = disassemble(found[0])
        return known[target]

    return of
