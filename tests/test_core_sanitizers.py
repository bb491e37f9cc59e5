"""The C++ programs of csrc/tests, compiled with the sanitizers and run: no framework, no Python in the process."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import native_build as native
import native_cuda
import pytest
from sanitizers import FLAGS, OPTIONS, compiler_here, needs


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    return compiler_here()


def _run(compiler: list[str], program: str, sanitizer: str, folder: Path, tested: Sequence[native.Object] = ()) -> None:
    checks = needs(compiler, sanitizer, folder)
    objects = [native.Object(f"tests/{program}.cpp", program, native.EMULATED), *tested]
    links = ("-pthread", *(() if sys.platform == "darwin" else ("-ldl",)))
    native.build(compiler, objects, folder / program, folder / "objects", (*FLAGS, *checks), links)
    env = {**os.environ, **OPTIONS}
    done = subprocess.run([str(folder / program)], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["formats", "control"])
def test_core(compiler, program, tmp_path):
    _run(compiler, program, "address,undefined", tmp_path)


def test_loops(compiler, tmp_path):
    _run(compiler, "loops", "address,undefined", tmp_path, native.cpu_objects(compiler))


def test_threads_race_nowhere(compiler, tmp_path):
    _run(compiler, "loops", "thread", tmp_path, native.cpu_objects(compiler))


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cuda_kernels(compiler, sanitizer, tmp_path):
    loops = native.Object(native.CPU_LOOPS, "loops", ("-DGREEDYLR_ISA=baseline",))
    _run(compiler, "cuda", sanitizer, tmp_path, [*native_cuda.emulated_objects(), loops])
