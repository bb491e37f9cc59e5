"""The tests that a version of PyTorch, or of its Triton, could break, on each version that is supported: `make compat`.

python -m benchmarks.compat                    every version of VERSIONS, one after the other
python -m benchmarks.compat 2.9.1 2.13.0       these only
python -m benchmarks.compat 2.9.1 --only Triton    one suite anew, beside what the others gave before
python -m benchmarks.compat --table            write the table from the results alone

Each version is installed in an environment of its own in build/compat, which is deleted afterwards: gigabytes, where it
is a build for CUDA. What else the tests need is seen from the Python that runs this. The compiled modules are those of
the checkout, since they include nothing of PyTorch.

Writes benchmarks/results/compat/VERSION.json, its output to build/compat/VERSION.log, and benchmarks/COMPAT.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import commit
from benchmarks.gpu import outcome
from benchmarks.gpu.runner import Command, Runner, Stage

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/compat"
WORK = ROOT / "build/compat"
TABLE = ROOT / "benchmarks/COMPAT.md"
VERSIONS = ("2.9.1", "2.11.0", "2.13.0", "2.14.1")
#: What is run, by the heading of its column.
SUITES = {
    "conformance": ("tests/conformance",),
    "checkpoints": ("tests/checkpoint",),
    "distributed": ("tests/distributed",),
    "compile": ("tests/optimizer/test_compile.py", "tests/graphs"),
    "Triton": ("tests/backends/test_triton_compile.py", "tests/backends/test_triton_interpreter.py"),
}
INSTALLING, TESTING = 1800.0, 3600.0  # seconds, of a slow network and of two busy cores


def main() -> int:
    """Run what was asked for, and write the table; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="of torch (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="write the table, and run nothing")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), help="suites (default: all)")
    parser.add_argument("--processes", default="2", help="of pytest (default: %(default)s)")
    arguments = parser.parse_args()
    failed = False
    for version in () if arguments.table else arguments.versions:
        failed |= tried(version, arguments.processes, arguments.only)["outcome"] == outcome.FAILED
    TABLE.write_text(table(read()))
    return int(failed)


def tried(version: str, processes: str, only: Sequence[str]) -> dict[str, Any]:
    """Install a version, run these suites with it, write the result, and delete what was installed."""
    folder = WORK / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = folder / "bin/python"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    runner = Runner(ROOT, kept | {"PYTHONPATH": str(ROOT)}, INSTALLING + len(SUITES) * TESTING)
    try:
        results = list(
            runner.run([Stage("environment", lambda: [Command([sys.executable, "-m", "venv", folder], 120)])])
        )
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"torch=={version}"]
        results += runner.run([Stage(f"torch {version}", lambda: [Command(install, INSTALLING)])])
        if results[-1].outcome == outcome.PASSED:
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
            results += runner.run([Stage("versions", lambda: [Command([python, "-c", ASKED], 300)], summary=str.strip)])
            for name in only:
                argv = [python, "-m", "pytest", "-q", "--exhaustive", "-n", processes, "--dist", "worksteal"]
                argv += SUITES[name]
                results += runner.run([Stage(name, lambda argv=argv: [Command(argv, TESTING)])])
        return written(version, results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


#: The versions that the environment has, as Python code.
ASKED = """
import importlib.metadata, torch
found = {name: importlib.metadata.version(name) for name in ("triton", "transformers", "numpy")}
print("torch", torch.__version__, *(word for pair in found.items() for word in pair))
"""


def written(version: str, results: list[outcome.Result]) -> dict[str, Any]:
    """Write the result of a version, beside that of suites which were not run anew, and return it."""
    path = RESULTS / f"{version}.json"
    suites = json.loads(path.read_text())["suites"] if path.exists() else {}
    for result in results:
        counted = {"outcome": result.outcome, "detail": result.detail, "seconds": round(result.seconds)}
        suites[result.name] = {**counted, "commit": commit()}
    failed = any(suite["outcome"] == outcome.FAILED for suite in suites.values())
    content = {
        "torch": version,
        "outcome": outcome.FAILED if failed else outcome.PASSED,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "suites": suites,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    said = [f"===== {result.name}\n{one.output}\n" for result in results for one in result.commands]
    (WORK / f"{version}.log").write_text("".join(said))
    return content


def read() -> list[dict[str, Any]]:
    """Return all results, the oldest version first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda content: [int(part) for part in content["torch"].split(".")])


def table(contents: list[dict[str, Any]]) -> str:
    """A row for each version that is supported, whether it was run or not."""
    lines = [
        "# What was run with which PyTorch",
        "",
        "By `make compat` (`benchmarks/compat.py`), each version in an environment of its own, on CPUs: tests that",
        "passed, failed and were left out. Kernels run in Triton's interpreter, and are compiled without a GPU.",
        "",
        f"| torch | Triton | Python | commit | {' | '.join(SUITES)} |",
        f"|{'---|' * (4 + len(SUITES))}",
    ]
    by_version = {content["torch"]: content for content in contents}
    for version in sorted({*VERSIONS, *by_version}, key=lambda name: [int(part) for part in name.split(".")]):
        if version not in by_version:
            lines.append(f"| {version} | | | | {' | '.join(['not run'] * len(SUITES))} |")
            continue
        content = by_version[version]
        suites = content["suites"]
        words = suites.get("versions", {"detail": ""})["detail"].split()
        versions = dict(zip(words[::2], words[1::2], strict=False))
        cells = [suites[name]["detail"] if name in suites else "not run" for name in SUITES]
        shown = [
            versions.get("torch", version),
            versions.get("triton", ""),
            content["python"],
            ", ".join(dict.fromkeys(suites[name]["commit"] for name in SUITES if name in suites)),
            *cells,
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
