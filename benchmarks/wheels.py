"""A wheel for each Python, installed from a local index and tried in clean environments: `make wheels`.

python -m benchmarks.wheels python3.10 /opt/python3.13/bin/python     with these interpreters, where they are found
python -m benchmarks.wheels --torch torch==2.13.0 python3.11          also with PyTorch: the README's first block
python -m benchmarks.wheels --cuda python3.11                         with the CUDA module, by nvcc from PyPI

For versions that [tool.cibuildwheel] in pyproject.toml names. In an environment that has nothing else: the wheel, from
`pip install --find-links`, with no compiler on PATH; and the source distribution, without a compiler and, with
--torch, with one. Without --torch the compiled modules are imported alone. Writes build/wheels/index, and
benchmarks/results/wheels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import commit
from benchmarks.gpu import outcome
from benchmarks.gpu.runner import Command, Runner, Stage

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/wheels"
INDEX = WORK / "index"
RESULT = ROOT / "benchmarks/results/wheels.json"
#: Packages with nvcc and what it includes and links; docs/install.md has the same for cibuildwheel.
NVCC = [f"nvidia-{name}==13.0.*" for name in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "cuda-cccl", "nvvm")]
#: Imports what was compiled, where there is no torch for the package itself.
ALONE = """
import importlib.util, json, pathlib, sys
folder = next(path for path in map(pathlib.Path, sys.path) if (path / "greedylr_fused/_build.json").exists())
for name, own in json.loads((folder / "greedylr_fused/_build.json").read_text()).items():
    if own["built"]:
        (path,) = (folder / "greedylr_fused").glob(f"{name}.*")
        spec = importlib.util.spec_from_file_location(f"greedylr_fused.{name}", path)
        importlib.util.module_from_spec(spec)
    print(name, "built" if own["built"] else "not built", end="; ")
"""
#: Runs the first block of the README, and says by which backend.
BLOCK = """
import re, pathlib, sys
exec(re.search(r"```python\\n(.*?)```", pathlib.Path(sys.argv[1]).read_text(), re.S)[1])
print("backend", re.search(r"backend: (\\w+)", repr(opt))[1])
"""


def main() -> int:
    """Build, install and try for every interpreter that is found; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wheels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="+", help="interpreters")
    parser.add_argument("--torch", help="what pip installs first, such as torch==2.13.0; gigabytes, but for CPU builds")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA module, too")
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    INDEX.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not re.match("PYTHON|CXX|CUDA|GREEDYLR", name)}
    runner = Runner(ROOT, kept | {"GREEDYLR_FUSED_CUDA": "0"}, 6 * 3600.0)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", WORK / "sdist", ROOT]
    runner.run([Stage("source distribution", lambda: [Command(build, 300)])])
    nvcc = compiler_from_pypi(runner) if arguments.cuda else {}
    for python in arguments.pythons:
        tried(runner, python, arguments.torch, nvcc)
    record(runner.results, arguments.torch)
    (WORK / "log").write_text("".join(f"== {r.name}\n{c.output}" for r in runner.results for c in r.commands))
    print(outcome.table(runner.results))
    return outcome.exit_code(runner.results)


def record(results: Sequence[outcome.Result], torch: str | None) -> None:
    """Write what was found of each Python; of others the result stays as it was."""
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    tags = dict.fromkeys(name.partition(": ")[0] for name in (result.name for result in results) if ": " in name)
    for tag in tags:
        steps = {result.name.partition(": ")[2]: result for result in results if result.name.startswith(f"{tag}: ")}
        found = {name: f"{result.outcome} {result.detail}".strip() for name, result in steps.items()}
        content[tag] = {"commit": commit(), "torch": torch or "none", "steps": found}
    RESULT.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def configured() -> list[str]:
    """Return the versions of Python that cibuildwheel builds for, such as "310"."""
    table = (ROOT / "pyproject.toml").read_text().partition("[tool.cibuildwheel]")[2]
    return re.findall(r"cp(3\d+)-\*", re.search(r"^build = .*$", table, re.M)[0])


def compiler_from_pypi(runner: Runner) -> dict[str, str]:
    """Install nvcc, and return the variables that point to it."""
    folder = WORK / "nvcc"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *NVCC]
    runner.run([Stage("nvcc from PyPI", lambda: [Command(install, 900)])])
    toolkit = folder / "nvidia/cu13"
    (toolkit / "lib64").symlink_to("lib")  # where nvcc looks
    return {"GREEDYLR_FUSED_CUDA": "1", "CUDACXX": str(toolkit / "bin/nvcc")}


def tried(runner: Runner, python: str, torch: str | None, cuda: dict[str, str]) -> None:
    """Build the wheel for one interpreter, and try it and the source distribution."""
    ask = [python, "-c", "import sys; print('%d%d' % sys.version_info[:2])"]
    found = runner.run([Stage(f"{Path(python).name}", lambda: [Command(ask, 60)], summary=str.strip)])[0]
    if found.outcome != outcome.PASSED or found.detail not in configured():
        return
    tag = f"cp{found.detail}"
    folder = WORK / tag
    own = folder / "bin/python"
    pip = [own, "-m", "pip", "--disable-pip-version-check"]
    (sdist,) = (WORK / "sdist").glob("*.tar.gz")

    def stage(name: str, *argv: object, env: dict[str, str] | None = None, summary=lambda _: "") -> None:
        runner.run([Stage(f"{tag}: {name}", lambda: [Command(argv, 1800, env or {})], summary=summary)])

    def try_out(name: str) -> None:
        if torch:
            stage(name, own, "-I", "-W", "error", "-c", BLOCK, ROOT / "README.md", env=bare, summary=last_line)
        else:
            stage(name, own, "-I", "-c", ALONE, env=bare, summary=last_line)

    bare = {"PATH": str(folder / "bin")}  # no compiler
    stage("environment", python, "-m", "venv", folder)
    stage("wheel", *pip, "wheel", "-q", "--no-deps", "-w", INDEX, sdist, env=cuda)
    if torch:
        stage(torch, *pip, "install", "-q", torch, "numpy")
    from_index = ["install", "-q", "--no-deps", "--no-index", "--find-links", INDEX, "greedylr_fused"]
    stage("install from the index, no compiler", *pip, *from_index, env=bare)
    try_out("the wheel, no compiler")
    if torch:
        stage("the smoke test", own, ROOT / "tests/smoke.py", env=bare)
    from_source = ["install", "-q", "--no-deps", "--force-reinstall", "--no-cache-dir", sdist]
    stage("install from source, no compiler", *pip, *from_source, env=bare)
    try_out("from source, no compiler")
    if torch:
        stage("install from source, with a compiler", *pip, *from_source)
        try_out("from source, with a compiler")
    shutil.rmtree(folder)


def last_line(output: str) -> str:
    """Return the last line that was printed."""
    return (output.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(main())
