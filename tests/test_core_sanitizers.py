"""The C++ programs of csrc/tests, compiled with the sanitizers and run: no framework, no Python in the process."""

import os
import subprocess
import sys
from pathlib import Path

import native_build as native
import pytest

FLAGS = ("-O1", "-g1", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    try:
        return native.find_compiler()
    except native.NoCompiler as missing:
        pytest.skip(str(missing))


def _supports(compiler: list[str], sanitizer: str, folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [*compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(folder / "empty")]
    linked = subprocess.run(command, capture_output=True).returncode == 0
    return linked and subprocess.run([str(folder / "empty")], capture_output=True).returncode == 0


def _run(compiler: list[str], program: str, sanitizer: str, folder: Path, *, loops: bool) -> None:
    if not _supports(compiler, sanitizer, folder):
        pytest.skip(f"{' '.join(compiler)} cannot link or run -fsanitize={sanitizer} here")
    objects = [native.Object(f"tests/{program}.cpp", program)] + (native.cpu_objects(compiler) if loops else [])
    checks = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    links = ("-pthread", *(() if sys.platform == "darwin" else ("-ldl",)))
    native.build(compiler, objects, folder / program, folder / "objects", (*FLAGS, *checks), links)
    env = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(folder / program)], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["formats", "control"])
def test_core(compiler, program, tmp_path):
    _run(compiler, program, "address,undefined", tmp_path, loops=False)


def test_loops(compiler, tmp_path):
    _run(compiler, "loops", "address,undefined", tmp_path, loops=True)


def test_threads_race_nowhere(compiler, tmp_path):
    _run(compiler, "loops", "thread", tmp_path, loops=True)
