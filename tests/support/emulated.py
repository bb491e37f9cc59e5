"""The CUDA backend without a GPU: its module compiled as plain C++, whose kernels run on CPU tensors."""

import ctypes
import fcntl
import functools
import importlib.machinery
import importlib.util
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import native_build as native
import native_cuda
import pytest

from greedylr_fused.backends import cuda
from support.paths import ROOT
from support.sanitizers import compiler_here

FOLDER = ROOT / "build" / f"cuda_emulated-{sysconfig.get_platform()}"


@functools.cache
def module() -> ModuleType:
    """`_cuda` over the emulation, compiled at the first use."""
    compiler = compiler_here()
    output = FOLDER / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ("-O2", *native.WARNINGS, "-Werror", *native.VISIBILITY)
    build(compiler, native_cuda.emulated_recipe(compiler).objects, output, flags)
    return load(output)


def set_ratio(ratio: int) -> None:
    """For tables made from now on: operations in float that the emulated device does in the time of one in double."""
    ctypes.CDLL(module().__file__).set_single_to_double_ratio(ratio)


def build(
    compiler: Sequence[str],
    objects: Sequence[native.Object],
    output: Path,
    flags: Sequence[str],
    link_with: Iterable[str] = (),
) -> None:
    """Compile and link a module or library in build/, where it and its objects stay for the next time."""
    output.parent.mkdir(parents=True, exist_ok=True)
    link_flags = (*native.module_link_flags(), *link_with)
    with open(output.parent / "lock", "w") as lock:  # tests may run in several processes, which share what is compiled
        fcntl.flock(lock, fcntl.LOCK_EX)
        native.build(compiler, objects, output, output.with_suffix(".objects"), flags, link_flags)


def load(output: Path) -> ModuleType:
    """A module that is compiled as another `_cuda`. The last part of a module's name is that of its initialisation;
    under the whole of it, pybind11 would find a module that is loaded already.
    """
    name = f"{output.parent.name}._cuda"
    loader = importlib.machinery.ExtensionFileLoader(name, str(output))
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(found)
    return found


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend "cuda" run on CPU tensors, until the test ends."""
    monkeypatch.setattr(cuda, "_native", module())
    monkeypatch.setattr(cuda, "_DEVICE_TYPES", ("cpu",))
