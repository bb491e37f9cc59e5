"""What a number depends on besides the code that was timed: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from greedylr_fused import __version__
from greedylr_fused.commands import doctor

HERE = Path(__file__).resolve().parent


def stamp(device: torch.device) -> dict[str, Any]:
    """The environment's part of a result file; `commit` ends in "-dirty" if files differ from it."""
    found = doctor.findings()
    properties: dict[str, Any] = {"device": found["CPU"], "device_type": device.type}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        properties |= {
            "device": torch.cuda.get_device_name(device),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
            "cuda": torch.version.cuda or f"hip {torch.version.hip}",
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
        }
    return properties | {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "greedylr_fused": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "triton": found["triton"],
        "python": platform.python_version(),
        "system": found["system"],
        "CPU": found["CPU"],
        "instruction_set": found["instruction set"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # of others, at the start
        "CXX": found["C++ compiler"],
        "nvcc": found["nvcc"],
    }


def commit() -> str:
    """Short hash of the checkout, with "-dirty" if tracked files differ; "unknown" outside of one."""
    return _output("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"
