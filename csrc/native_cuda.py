"""How the CUDA backend is compiled: where nvcc is, which GPUs it compiles for, and what to link with."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from native_build import CSRC, EMULATED, BuildFailed, Missing, Object, Recipe, emulation_objects, python_unit

SWITCH = "GREEDYLR_FUSED_CUDA"

KERNELS = "cuda/step.cu"
BINDING = "cuda/bind_cuda.cpp"

# Machine code for what large models are trained on (A100, H100/H200, B200), and the newest of them also as PTX, which
# the driver compiles for later GPUs. The processors in between run the code of the one before (sm_86 that of sm_80).
ARCHITECTURES = ("80", "90", "100")

# No contraction, as on the CPU: the compiler would contract one element of a pack otherwise than its neighbours, so
# that an element's last bits would depend on its place and alignment. Memory is the limit, and loses no time by it.
# The update's float32 quotient may err by 2 ulp (div.full), well below what the roundings before it leave: a correctly
# rounded one costs ten instructions more an element and the registers of its slow path. Square roots and float64 stay
# exact.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-prec-div=false", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden")

LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")  # which nvcc cannot have before its host compiler
NEEDED = ("-lrt", "-lpthread", "-ldl")  # by the static runtime; part of the C library only from glibc 2.34 on
INSTALLED = "/usr/local/cuda/bin/nvcc"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler: its program, its version and the architectures that it knows among those wanted."""

    program: str
    release: str
    architectures: tuple[str, ...]

    def __str__(self) -> str:
        codes = ", ".join(f"sm_{arch}" for arch in self.architectures)
        return f"{self.program} {self.release} for {codes} and later"


def wanted() -> bool | None:
    """What ``GREEDYLR_FUSED_CUDA`` says of the CUDA backend: True demands it, False forbids it, None leaves it to nvcc.

    Raises:
        BuildFailed: it says something else.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise BuildFailed(
            f"{SWITCH}: expected 0 (never) or 1 (always), got {value!r}; unset it to build if nvcc is found"
        )
    return None if value == "" else value == "1"


def recipe(compiler: Sequence[str]) -> Recipe:
    """How to build the module with this host compiler.

    Raises:
        Missing: it is forbidden, or there is no nvcc to use; the text says what was looked for.
    """
    if wanted() is False:
        raise Missing(f"{SWITCH}=0 forbade it at installation; unset it and reinstall")
    nvcc = find_nvcc()
    kernels = Object(KERNELS, "step", command=compile_command(nvcc, compiler))
    return Recipe([kernels, python_unit(BINDING)], link_flags(nvcc), f"{nvcc}, {shlex.join(compiler)}")


def emulated_recipe(compiler: Sequence[str]) -> Recipe:
    """The same module for tests: its kernels run on the CPU, thread for thread, on CPU tensors."""
    return Recipe([python_unit(BINDING), *emulated_objects()], (), shlex.join(compiler))


def emulated_objects() -> list[Object]:
    """The kernels, compiled as plain C++, and what runs them."""
    return [Object(KERNELS, "cuda_step", ("-xc++", *EMULATED)), *emulation_objects()]


def find_nvcc() -> Nvcc:
    """``$CUDACXX``, else the first of ``$CUDA_HOME/bin/nvcc``, nvcc on PATH, /usr/local/cuda/bin/nvcc.

    Raises:
        Missing: there is none, or it is too old.
    """
    chosen, home = os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")
    candidates = [chosen] if chosen else [*([f"{home}/bin/nvcc"] if home else []), "nvcc", INSTALLED]
    program = next(filter(None, map(shutil.which, candidates)), None)
    if program is None:
        looked = f"CUDACXX is {chosen!r}" if chosen else f"looked for {', '.join(candidates)}"
        raise Missing(f"no nvcc that can be run ({looked}); install the CUDA toolkit or set CUDACXX, and reinstall")
    release = re.search(r"release ([\d.]+)", _answer(program, "--version"))
    known = set(re.findall(r"sm_(\d+)\b", _answer(program, "--list-gpu-code")))
    architectures = tuple(arch for arch in ARCHITECTURES if arch in known)
    if release is None or not architectures:
        raise Missing(f"{program} compiles for none of sm_{', sm_'.join(ARCHITECTURES)}; install a newer CUDA toolkit")
    return Nvcc(program, release[1], architectures)


def compile_command(nvcc: Nvcc, compiler: Sequence[str]) -> tuple[str, ...]:
    """The command that compiles a .cu file, but for its name."""
    host = list(compiler[1:] if Path(compiler[0]).name in LAUNCHERS and len(compiler) > 1 else compiler)
    options = [f"-Xcompiler={option}" for option in host[1:]]
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in nvcc.architectures]
    newest = nvcc.architectures[-1]
    codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return (nvcc.program, f"-ccbin={shutil.which(host[0]) or host[0]}", *options, *FLAGS, *codes)


def link_flags(nvcc: Nvcc) -> tuple[str, ...]:
    """The static CUDA runtime of that nvcc, with its names hidden: PyTorch brings a runtime of its own."""
    said = _answer(nvcc.program, "--dryrun", str(CSRC / KERNELS))
    folders = re.findall(r'"-L([^"]+)"', next((line for line in said.splitlines() if "LIBRARIES=" in line), ""))
    return (*(f"-L{folder}" for folder in folders), "-lcudart_static", *NEEDED, "-Wl,--exclude-libs,ALL")


def _answer(*command: str) -> str:
    """What a program prints, wherever to; empty if it cannot be run."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100).stdout
    except OSError:
        return ""
