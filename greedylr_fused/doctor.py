"""`python -m greedylr_fused doctor`: what this machine has, and why each backend is on or off."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from greedylr_fused import available_backends, watch
from greedylr_fused.version import __version__

_BUILD_REPORT = Path(__file__).parent / "_build.json"
_CUDA_INSTALLED = "/usr/local/cuda/bin/nvcc"


def findings() -> dict[str, str]:
    """What was detected: a text for every name, also where there is nothing."""
    return {
        "greedylr_fused": f"{__version__} in {Path(__file__).parent}",
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": _triton(),
        "C++ compiler": _first_program([os.environ.get("CXX", ""), "c++", "g++", "clang++"]),
        "nvcc": _first_program(_nvcc_places()),
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores",
        "instruction set": _instruction_set(),
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads changes it)",
        "GPU": _gpus(),
        "looking at tensors": "compiled" if (why := watch.unavailable()) is None else f"in Python: {why}",
        "build": _build(),
    }


def backends() -> dict[str, str]:
    """Every backend on every kind of device: "on", or "off" and the reason."""
    states = {}
    for device in ("cpu", "cuda"):
        for name, reason in available_backends(device).items():
            if device == "cuda" and not torch.cuda.is_available():
                reason = "PyTorch finds no CUDA device"
            states[f"{name} on {device}"] = "on" if reason is None else f"off: {reason}"
    return states


def main(argv: Sequence[str] = ()) -> None:
    """Print both tables; there are no options."""
    argparse.ArgumentParser(prog="python -m greedylr_fused doctor", description=__doc__).parse_args(argv)
    for title, rows in (("found", findings()), ("backends, in order of preference", backends())):
        print(title)
        width = max(map(len, rows))
        for name, text in rows.items():
            print(f"  {name:{width}}  {text}")


def _triton() -> str:
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError as error:
        return f"not found ({error})"


def _first_program(names: list[str]) -> str:
    for name in names:
        path = shutil.which(name.split()[0]) if name else None
        if path is not None:
            asked = subprocess.run([path, "--version"], capture_output=True, text=True)
            lines = [line for line in asked.stdout.splitlines() if line]
            version = next((line for line in lines if "release" in line), lines[0] if lines else "version unknown")
            return f"{path}: {version}"
    return f"not found (looked for {', '.join(filter(None, names))})"


def _nvcc_places() -> list[str]:
    """Where an installation looks for it."""
    home = os.environ.get("CUDA_HOME")
    return [os.environ.get("CUDACXX", ""), f"{home}/bin/nvcc" if home else "", "nvcc", _CUDA_INSTALLED]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
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


if __name__ == "__main__":
    main(sys.argv[1:])
