"""What is compiled for these tests: a fused multiply-add for NumPy, and `_cuda` over a runtime that has no GPU.

Both stay in build/ for the next time. The second is linked from the objects of the real module, nvcc's among them.
"""

import ctypes
import functools
import subprocess
import sys
import sysconfig
from pathlib import Path

import native_build as native
import native_cuda
import numpy as np
import pytest
from support import emulated
from support.sanitizers import compiler_here

BUILD = Path(__file__).resolve().parents[2] / "build"
FOLDER = BUILD / f"ptx-{sysconfig.get_platform()}"
OBJECTS = BUILD / f"cuda-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
AGAIN = "python setup.py build_ext --inplace"


@functools.cache
def _fused_functions() -> dict[type, ctypes._CFuncPtr]:
    output = FOLDER / "fma.so"
    objects = [native.Object("tests/ptx/fma.cpp", "fma")]
    emulated.build(compiler_here(), objects, output, (*native.SPEED, *native.WARNINGS))
    library = ctypes.CDLL(str(output))
    return {np.float32: library.fma32, np.float64: library.fma64}


def fused(a, b, c, dtype):
    """a * b + c, rounded once."""
    inputs = [np.ascontiguousarray(x, dtype) for x in np.broadcast_arrays(a, b, c)]
    result = np.empty(inputs[0].shape, dtype)
    addresses = (ctypes.c_void_p(x.__array_interface__["data"][0]) for x in (*inputs, result))
    _fused_functions()[dtype](*addresses, ctypes.c_int64(result.size))
    return result


def shipped_ptx() -> str:
    """The PTX in the built module, that of the newest architecture; skips the test where there is none."""
    from support.machine_code import built_module

    text = _ptx_in(built_module())
    if not all(path.exists() for path in _objects()):
        pytest.skip(f"the objects that _cuda was linked from are not in build/{OBJECTS.name}: {AGAIN}")
    assert _ptx_in(OBJECTS / "step.o") == text, f"_cuda was linked from other objects than build/ has: {AGAIN}"
    return text


def _ptx_in(path: Path) -> str:
    from support.machine_code import TOOLS

    command = [TOOLS / "cuobjdump", "--dump-ptx", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return said[said.index(".version") :]


def _objects() -> list[Path]:
    return [OBJECTS / "step.o", OBJECTS / "bind_cuda.o"]


def linked_module() -> Path:
    """The host code of `_cuda` over csrc/tests/ptx/fake_cudart.cpp; after `shipped_ptx`, which says if it can be."""
    compiler = compiler_here()
    try:
        nvcc = native_cuda.find_nvcc()  # knows where the headers of the runtime are
    except native.Missing as missing:
        pytest.skip(str(missing))
    command = native_cuda.compile_command(nvcc, compiler)
    output = FOLDER / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if output.exists() and output.stat().st_mtime < max(path.stat().st_mtime for path in _objects()):
        output.unlink()  # what it is linked with, its build does not know of
    runtime = native.Object("tests/ptx/fake_cudart.cpp", "fake_cudart", command=command)
    emulated.build(compiler, [runtime], output, native.VISIBILITY, map(str, _objects()))
    return output
