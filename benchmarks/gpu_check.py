"""Checks and measurements that only a GPU can give, in one go of eight minutes: `make gpu-check`.

Needs a GPU, nvcc and a Python with PyTorch; no network and no environment of its own. What is missing of pytest,
hypothesis, pytest-timeout, pybind11, ninja and setuptools is taken from wheels in the folder wheels/, filled elsewhere:

    pip download -d wheels pytest hypothesis pytest-timeout pybind11 ninja setuptools

Every check is a process of its own with a time limit. Without one of its tools a check is left out, and the table says
why; without nvcc the backend "cuda" counts as failed and "triton" is checked all the same.

Writes gpu_check.json, .log (all output) and .png, and the benchmarks' JSON files, to $OUT, or else ./gpu-check-out.
Exit code: 0 if no check failed, 1 if one did, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import outcome, stages
from benchmarks.gpu.runner import Command, Runner, Stage
from benchmarks.gpu.stages import ROOT, Machine

#: Importable name and package of what stages need besides PyTorch.
NEEDED = {name: name for name in ("pytest", "hypothesis", "pybind11", "ninja", "setuptools")}
NEEDED |= {"pytest_timeout": "pytest-timeout"}
#: Oldest major version that csrc/ is built with.
OLDEST = {"pybind11": 3}
MINUTES = 8.0
#: Seconds that are kept for the last group, the figure.
FOR_THE_LAST = 15.0


def main() -> int:
    """Run all groups of stages, write after each, print the table last."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = Path(os.environ.get("OUT") or "gpu-check-out")
    parser.add_argument("--out", type=Path, default=out, help="folder for the results (default here: %(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything (default: %(default)s)")
    parser.add_argument(
        "--only", metavar="WORD", action="append", help="only stages with this in their name; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="show the names of the stages, and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU, where that makes sense")
    arguments = parser.parse_args()
    machine = Machine(arguments.out.resolve(), "cpu" if arguments.rehearse else "cuda")
    groups = stages.groups(machine)
    if arguments.list:
        print("\n".join(stage.name for _, group in groups for stage in group))
        return 0
    if not arguments.rehearse and (reason := no_gpu()) is not None:
        print(f"gpu-check: nothing was checked: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an interrupted run ends its processes
    runner = Runner(ROOT, machine.env, 60 * arguments.minutes, lambda line: print(line, flush=True))
    if missing := absent():
        runner.run([Stage("missing packages", lambda: install(machine, missing))])
    for workers, group in groups:
        chosen = [stage for stage in group if not arguments.only or any(word in stage.name for word in arguments.only)]
        if chosen:
            runner.run(chosen, workers, reserve=0.0 if group is groups[-1][1] else FOR_THE_LAST)
            _write(machine, runner)
    print("\n" + "\n".join(machine.highlights()) + "\n")
    print(outcome.table(runner.results))
    return outcome.exit_code(runner.results)


def absent(version: Callable[[str], str] = importlib.metadata.version) -> list[str]:
    """The packages of `NEEDED` that cannot be imported, or are too old to build with."""
    return [
        package
        for name, package in NEEDED.items()
        if importlib.util.find_spec(name) is None or int(version(package).split(".")[0]) < OLDEST.get(package, 0)
    ]


def no_gpu(load: Callable[[str], Any] = importlib.import_module) -> str | None:
    """Why there is none, or None if there is one."""
    try:
        torch = load("torch")
    except ImportError as error:
        return f"{sys.executable} cannot import torch: {error}; use make gpu-check PYTHON=.venv/bin/python, or another"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__}, built for CUDA: {torch.version.cuda or 'no'}, finds no GPU"
    return None


def install(machine: Machine, missing: list[str], wheels: Path = ROOT / "wheels") -> list[Command] | str:
    """What installs packages from the folder, beside the interpreter's own; without the folder, what is missing."""
    if not wheels.is_dir():
        return f"{', '.join(missing)} missing or too old, and there is no folder wheels/ to take them from"
    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--no-cache-dir", "--upgrade")
    return [machine.python(*pip, "--find-links", wheels, "--target", machine.site, *missing, limit=60)]


def _write(machine: Machine, runner: Runner) -> None:
    """After every group, so that what was found is there if a later one ends the run."""
    outcome.write(runner.results, machine.out, "gpu_check", environment=machine.environment())


if __name__ == "__main__":
    sys.exit(main())
