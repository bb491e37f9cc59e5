"""The CUDA backend without a GPU: its module compiled as plain C++, whose kernels run on CPU tensors."""

import fcntl
import functools
import importlib.machinery
import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import native_build as native
import native_cuda
import pytest
from sanitizers import compiler_here

from greedylr_fused.backends import cuda

FOLDER = Path(__file__).resolve().parent.parent / "build" / f"cuda_emulated-{sysconfig.get_platform()}"


@functools.cache
def module() -> ModuleType:
    """`_cuda` over the emulation, compiled at the first use; objects stay in build/ for the next time."""
    compiler = compiler_here()
    output = FOLDER / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = native_cuda.emulated_recipe(compiler).objects
    flags = ("-O2", *native.WARNINGS, "-Werror", *native.VISIBILITY)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:  # tests may run in several processes, which share what is compiled
        fcntl.flock(lock, fcntl.LOCK_EX)
        native.build(compiler, objects, output, output.with_suffix(".objects"), flags, native.module_link_flags())
    # The module's initialisation has the name of the real one.
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(output))
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader("_cuda", loader))
    loader.exec_module(found)
    return found


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend "cuda" run on CPU tensors, until the test ends."""
    monkeypatch.setattr(cuda, "_native", module())
    monkeypatch.setattr(cuda, "_DEVICE_TYPES", ("cpu",))
