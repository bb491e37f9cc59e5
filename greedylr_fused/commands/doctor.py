"""`python -m greedylr_fused doctor`: what this machine has, and why each backend is on or off.

Made to be pasted into a bug report: whatever cannot be found out is said in its line, and nothing ends the command.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from greedylr_fused import available_backends
from greedylr_fused.backends import resolve
from greedylr_fused.tensors import watch
from greedylr_fused.version import __version__

_PACKAGE = Path(__file__).parent.parent
_BUILD_REPORT = _PACKAGE / "_build.json"
_CUDA_INSTALLED = "/usr/local/cuda/bin/nvcc"

#: Frameworks that greedylr_fused/integrations is for; Lightning comes under two names.
_FRAMEWORKS = ("transformers", "accelerate", "lightning", "pytorch_lightning")

#: Variables of the environment that change what is built, found or run.
_VARIABLES = "CXX CXXFLAGS LDFLAGS CUDACXX CUDA_HOME GREEDYLR_FUSED_CUDA CUDA_VISIBLE_DEVICES".split()
_VARIABLES += "OMP_NUM_THREADS TRITON_INTERPRET".split()


def findings() -> dict[str, str]:
    """Return what was detected: a text for every name, also where there is nothing, or where asking failed."""
    return {name: _answer(ask) for name, ask in _QUESTIONS.items()}


def backends() -> dict[str, str]:
    """Return the state of every backend on every kind of device: "on", or "off" and the reason."""
    states = {}
    for device in ("cpu", "cuda"):
        for name, reason in available_backends(device).items():
            if device == "cuda" and not torch.cuda.is_available():
                reason = "PyTorch finds no CUDA device"
            states[f"{name} on {device}"] = "on" if reason is None else f"off: {reason}"
    return states


def choices() -> dict[str, str]:
    """Return the backend that `backend="auto"` takes for parameters on every kind of device."""
    taken = {"on cpu": resolve("auto", torch.device("cpu")).backend.name}
    found = torch.cuda.is_available()
    taken["on cuda"] = resolve("auto", torch.device("cuda")).backend.name if found else "PyTorch finds no CUDA device"
    return taken


def main(argv: Sequence[str] = ()) -> None:
    """Print all tables; there are no options."""
    argparse.ArgumentParser(prog="python -m greedylr_fused doctor", description=__doc__).parse_args(argv)
    sections: dict[str, Callable[[], Mapping[str, str]]] = {
        "found": findings,
        "backends, in order of preference": backends,
        'backend="auto" takes, for parameters': choices,
    }
    for title, ask in sections.items():
        try:
            rows = ask()
        except Exception as error:
            rows = {"unknown": _failed(error)}
        print(title)
        width = max(map(len, rows))
        for name, text in rows.items():
            print(f"  {name:{width}}  {text}")


def _answer(ask: Callable[[], str]) -> str:
    """Return what is found, or why asking failed: a machine may be damaged just where one looks."""
    try:
        return ask()
    except Exception as error:
        return f"unknown ({_failed(error)})"


def _failed(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _triton() -> str:
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError as error:
        return f"not found ({error})"


def _installed(framework: str) -> str:
    """Return the version in a framework's metadata: importing it takes seconds, and may fail."""
    try:
        return metadata.version(framework)
    except metadata.PackageNotFoundError:
        return "not installed"


def _first_program(names: Sequence[str]) -> str:
    named = [name for name in names if name.strip()]
    for name in named:
        path = shutil.which(name.split()[0])
        if path is not None:
            return f"{path}: {_version(path)}"
    return f"not found (looked for {', '.join(named)})"


def _version(program: str) -> str:
    try:
        asked = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be run ({_failed(error)})"
    lines = [line for line in asked.stdout.splitlines() if line]
    return next((line for line in lines if "release" in line), lines[0] if lines else "version unknown")


def _nvcc_places() -> list[str]:
    """Return where an installation looks for nvcc, in order."""
    home = os.environ.get("CUDA_HOME")
    return [os.environ.get("CUDACXX", ""), f"{home}/bin/nvcc" if home else "", "nvcc", _CUDA_INSTALLED]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:  # another system's, or closed to us
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown"


def _instruction_set() -> str:
    try:
        native = importlib.import_module("greedylr_fused._cpu")
    except ImportError as error:
        return f"none: greedylr_fused._cpu is not usable ({error})"
    return f"{native.isa()}, chosen of {', '.join(native.isas())}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return f"none that PyTorch can use (built for CUDA: {torch.version.cuda or 'no'})"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found)


def _build() -> str:
    if not _BUILD_REPORT.exists():
        return "no record of a build (pip install -e . makes one)"
    report = json.loads(_BUILD_REPORT.read_text())
    parts = [f"{name} {'built' if own['built'] else 'not built'}: {own['reason']}" for name, own in report.items()]
    return "; ".join(parts) or "nothing was to be built"


def _environment() -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none of note is set"


_QUESTIONS: dict[str, Callable[[], str]] = {
    "greedylr_fused": lambda: f"{__version__} in {_PACKAGE}",
    "python": lambda: f"{platform.python_version()} at {sys.executable}",
    "system": lambda: f"{platform.system()} {platform.machine()}",
    "release": lambda: f"{platform.release()}, {' '.join(platform.libc_ver()) or 'C library unknown'}",
    "torch": lambda: torch.__version__,
    "triton": _triton,
    **{name: functools.partial(_installed, name) for name in _FRAMEWORKS},
    "C++ compiler": lambda: _first_program([os.environ.get("CXX", ""), "c++", "g++", "clang++"]),
    "nvcc": lambda: _first_program(_nvcc_places()),
    "CPU": lambda: f"{_cpu_name()}, {os.cpu_count()} cores",
    "instruction set": _instruction_set,
    "threads": lambda: f"{torch.get_num_threads()} (torch.set_num_threads changes it)",
    "GPU": _gpus,
    "looking at tensors": lambda: "compiled" if (why := watch.unavailable()) is None else f"in Python: {why}",
    "build": _build,
    "variables": _environment,
}


if __name__ == "__main__":
    main(sys.argv[1:])
