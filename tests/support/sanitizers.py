"""How the tests compile C++ programs with the sanitizers, and run them."""

import fcntl
import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import native_build as native
import pytest

from support.paths import ROOT

FOLDER = ROOT / "build" / f"sanitized-{sysconfig.get_platform()}"
FLAGS = ("-Og", "-g1", "-Wall", "-Wextra", "-Werror")
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}


def compiler_here() -> list[str]:
    """The C++ compiler; skips the test without one."""
    try:
        return native.find_compiler()
    except native.NoCompiler as missing:
        pytest.skip(str(missing))


def program(source: str, sanitizer: str | None, tested: Sequence[native.Object]) -> Path:
    """The program of csrc/tests/<source>.cpp with what it tests, instrumented if there is a sanitizer.

    It stays in build/ with its objects, which the programs under one sanitizer share: each compiles only what no other
    did, and the next time only what changed.
    """
    compiler = compiler_here()
    checks = () if sanitizer is None else _needs(tuple(compiler), sanitizer)
    folder = FOLDER / (sanitizer or "plain").replace(",", "-")
    folder.mkdir(parents=True, exist_ok=True)
    objects = [native.Object(f"tests/{source}.cpp", f"test_{source}", native.EMULATED), *tested]
    links = ("-pthread", *(() if sys.platform == "darwin" else ("-ldl",)))
    with open(folder / "lock", "w") as lock:  # tests may run in several processes, which share what is compiled
        fcntl.flock(lock, fcntl.LOCK_EX)
        native.build(compiler, objects, folder / source, folder / "objects", (*FLAGS, *checks), links)
    return folder / source


def run(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **OPTIONS, **variables}
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=150, env=env)


@functools.cache
def _needs(compiler: tuple[str, ...], sanitizer: str) -> tuple[str, ...]:
    """Flags for this sanitizer; skips the test if the compiler cannot use it here."""
    with tempfile.TemporaryDirectory() as folder:
        source, empty = Path(folder, "empty.cpp"), Path(folder, "empty")
        source.write_text("int main() {}\n")
        command = [*compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(empty)]
        linked = subprocess.run(command, capture_output=True).returncode == 0
        if not linked or subprocess.run([str(empty)], capture_output=True).returncode != 0:
            pytest.skip(f"{' '.join(compiler)} cannot link or run -fsanitize={sanitizer} here")
    return (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
