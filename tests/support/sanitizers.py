"""How the tests compile C++ programs with the sanitizers, and run them."""

import subprocess
from pathlib import Path

import native_build as native
import pytest

FLAGS = ("-O1", "-g1", "-Wall", "-Wextra", "-Werror")
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}


def compiler_here() -> list[str]:
    """The C++ compiler; skips the test without one."""
    try:
        return native.find_compiler()
    except native.NoCompiler as missing:
        pytest.skip(str(missing))


def needs(compiler: list[str], sanitizer: str | None, folder: Path) -> tuple[str, ...]:
    """Flags for this sanitizer; skips the test if the compiler cannot use it here."""
    if sanitizer is None:
        return ()
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [*compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(folder / "empty")]
    linked = subprocess.run(command, capture_output=True).returncode == 0
    if not linked or subprocess.run([str(folder / "empty")], capture_output=True).returncode != 0:
        pytest.skip(f"{' '.join(compiler)} cannot link or run -fsanitize={sanitizer} here")
    return (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
