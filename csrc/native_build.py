"""How the C++ sources are compiled: one list of files and flags, one ninja file, no framework headers.

``setup.py`` builds the extension modules with it; the tests build the sanitizer programs with it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent

# The semantics come last on the command line: CXXFLAGS may add to them, not undo them. No contraction and no
# fast-math: every instruction set must give the same bits, and NaN must stay NaN.
SPEED = ("-O3",)
SEMANTICS = ("-std=c++17", "-fPIC", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wextra")
VISIBILITY = ("-fvisibility=hidden",)

CPU_SOURCES = ("cpu/backup.cpp", "cpu/isa.cpp", "cpu/step.cpp", "cpu/threads.cpp")
CPU_BINDING = "cpu/bind_cpu.cpp"

HOST_SOURCES = ("host/watch.cpp", "host/watch_build.cpp")
HOST_BINDING = "host/bind_host.cpp"

# The innermost loops, compiled once per instruction set; cpu/isa.cpp chooses at run time.
CPU_LOOPS = "cpu/loops.cpp"
X86_ISAS = {
    "avx2": ("-mavx2", "-mf16c"),
    "avx512": ("-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
}

# Runs CUDA kernels on the CPU. Not instrumented: it tells the sanitizers itself what a GPU's threads are.
EMULATION = CSRC / "tests" / "emulation"
EMULATED = (f"-I{EMULATION}", "-Wno-unknown-pragmas")  # for sources that nvcc would compile


class Missing(Exception):
    """Something that the build needs is not here; the text says what was looked for."""


class NoCompiler(Missing):
    """No C++ compiler can be run."""


class BuildFailed(RuntimeError):
    """A compiler reported an error, or a setting of the build is none."""


@dataclass(frozen=True)
class Object:
    """One translation unit: a source under csrc/, the object's name, and the flags that only it gets.

    With a `command`, that compiles it, not the C++ compiler with the flags of the build.
    """

    source: str
    name: str
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How a Python module is built: its translation units, what else it is linked with, and by which compilers."""

    objects: list[Object]
    link_flags: tuple[str, ...]
    compilers: str


def find_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, else the first of c++, g++, clang++ on PATH.

    Raises:
        NoCompiler: there is none.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    candidates = [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    if wanted:
        raise NoCompiler(f"CXX is {wanted[0]!r}, which is not a program that can be run")
    raise NoCompiler("no C++ compiler on PATH (looked for c++, g++, clang++); install one or set CXX, and reinstall")


def isa_flags(compiler: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Instruction sets to compile the loops for, with their flags: more than the baseline on x86-64 only."""
    machine = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True).stdout
    return {"baseline": (), **(X86_ISAS if machine.startswith("x86_64") else {})}


def cpu_objects(compiler: Sequence[str]) -> list[Object]:
    """Every translation unit of the CPU backend but its Python binding."""
    objects = [Object(source, Path(source).stem) for source in CPU_SOURCES]
    for isa, flags in isa_flags(compiler).items():
        objects.append(Object(CPU_LOOPS, f"loops_{isa}", (f"-DGREEDYLR_ISA={isa}", *flags)))
    return objects


def emulation_objects() -> list[Object]:
    """What kernels need that are compiled as plain C++, with `EMULATED` among their flags."""
    sources = sorted(EMULATION.glob("*.cpp"))
    return [Object(str(source.relative_to(CSRC)), source.stem, ("-fno-sanitize=all",)) for source in sources]


def python_unit(source: str) -> Object:
    """A translation unit that uses pybind11, with the include paths of this interpreter."""
    import pybind11

    includes = (pybind11.get_include(), sysconfig.get_paths()["include"], sysconfig.get_paths()["platinclude"])
    # Without NDEBUG, pybind11 asks at every counted reference whether the thread holds the interpreter.
    flags = ("-DNDEBUG", *(f"-isystem{path}" for path in dict.fromkeys(includes)))
    return Object(source, Path(source).stem, flags)


def cpu_recipe(compiler: Sequence[str]) -> Recipe:
    """The CPU backend."""
    return Recipe([python_unit(CPU_BINDING), *cpu_objects(compiler)], (), shlex.join(compiler))


def host_recipe(compiler: Sequence[str]) -> Recipe:
    """The module that watches tensors between steps, which speaks Python throughout."""
    return Recipe([python_unit(source) for source in (HOST_BINDING, *HOST_SOURCES)], (), shlex.join(compiler))


def module_link_flags() -> tuple[str, ...]:
    """How to link a Python extension module on this system."""
    if sys.platform == "darwin":
        return ("-bundle", "-undefined", "dynamic_lookup")
    return ("-shared", "-pthread", "-ldl")


def build(
    compiler: Sequence[str],
    objects: Sequence[Object],
    output: Path,
    build_dir: Path,
    flags: Sequence[str] = (*SPEED, *WARNINGS),
    link_flags: Sequence[str] = (),
) -> None:
    """Compile `objects` in parallel, those that changed only, and link them into `output`.

    Args:
        compiler: command of the C++ compiler.
        objects: translation units; their names are unique.
        output: file to write.
        build_dir: where objects and dependency files are kept for the next time.
        flags: compiler flags for all objects, before CXXFLAGS and the semantic ones.
        link_flags: flags of the link step, before LDFLAGS.

    Raises:
        BuildFailed: a compiler reported an error; the text is its output.
    """
    build_dir.mkdir(parents=True, exist_ok=True)
    all_flags = [*flags, *shlex.split(os.environ.get("CXXFLAGS", "")), *SEMANTICS]
    all_link_flags = [*link_flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
    text = _ninja_file(compiler, objects, output.resolve(), build_dir.resolve(), all_flags, all_link_flags)
    (build_dir / "build.ninja").write_text(text)
    done = subprocess.run([_ninja(), "-C", str(build_dir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildFailed(f"compiling {output.name} failed:\n{done.stdout}")


def first_error(output: str) -> str:
    """The line that matters of what compilers said: the first that speaks of an error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("ninja:")]
    return next((line for line in lines if re.search(r"\b(error|fatal)\b", line, re.I)), lines[-1])


def _ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise BuildFailed("building needs ninja: pip install ninja") from None
        return found
    return str(Path(ninja.BIN_DIR) / "ninja")


def _ninja_file(
    compiler: Sequence[str],
    objects: Sequence[Object],
    output: Path,
    build_dir: Path,
    flags: Sequence[str],
    link_flags: Sequence[str],
) -> str:
    """What ninja is to do. Sources are named relative to `build_dir`: a tree that was moved or copied with its objects
    needs no compiling, and no module tells where it was compiled.
    """
    lines = [
        f"cxx = {_joined(compiler)}",
        f"flags = {_joined(flags)}",
        "rule compile",
        "  command = $tool $own -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx $flags $in -o $out {_joined(link_flags)}",
    ]
    for unit in objects:
        source = os.path.relpath(CSRC / unit.source, build_dir)
        lines.append(f"build {unit.name}.o: compile {_escaped(source)}")
        lines.append(f"  tool = {_joined(unit.command) or '$cxx $flags'}")
        lines.append(f"  own = {_joined(unit.flags)}")
    lines.append(f"build {_escaped(output)}: link {' '.join(f'{unit.name}.o' for unit in objects)}")
    return "\n".join(lines) + "\n"


def _joined(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _escaped(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
