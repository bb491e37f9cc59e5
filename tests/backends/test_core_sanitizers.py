"""The C++ programs of csrc/tests, compiled with the sanitizers and run: no framework, no Python in the process."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import native_build as native
import native_cuda
import pytest
from support.sanitizers import FLAGS, OPTIONS, compiler_here, needs


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    return compiler_here()


def _build(compiler: list[str], program: str, sanitizer: str, folder: Path, tested: Sequence[native.Object]) -> None:
    checks = needs(compiler, sanitizer, folder)
    objects = [native.Object(f"tests/{program}.cpp", program, native.EMULATED), *tested]
    links = ("-pthread", *(() if sys.platform == "darwin" else ("-ldl",)))
    native.build(compiler, objects, folder / program, folder / "objects", (*FLAGS, *checks), links)


def _run(program: Path, *arguments: str, **variables: str) -> None:
    env = {**os.environ, **OPTIONS, **variables}
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["formats", "control"])
def test_core(compiler, program, tmp_path):
    _build(compiler, program, "address,undefined", tmp_path, ())
    _run(tmp_path / program)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_loops(compiler, sanitizer, tmp_path):
    _build(compiler, "loops", sanitizer, tmp_path, native.cpu_objects(compiler))
    _run(tmp_path / "loops")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cuda_kernels(compiler, sanitizer, tmp_path):
    loops = native.Object(native.CPU_LOOPS, "loops", ("-DGREEDYLR_ISA=baseline",))
    _build(compiler, "cuda", sanitizer, tmp_path, [*native_cuda.emulated_objects(), loops])
    _run(tmp_path / "cuda", ASAN_OPTIONS="detect_stack_use_after_return=0")
    if sanitizer != "thread":  # a second stack for each of thousands of GPU threads: six times the time of all else
        _run(tmp_path / "cuda", "1")
