"""Which modules an installation builds, and what it says of those that it does not: with compilers that pretend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import native_build as native
import native_cuda as cuda
import pytest
from support.paths import ROOT

COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "csrc", "greedylr_fused")
BUILT = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")

# Both keep their arguments and write the file that they are asked for.
COMPILER = """#!/bin/sh
echo "$*" >> "$0.log"
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo object > "$2"; shift; done
"""
NVCC = """#!/bin/sh
echo "$*" >> "$0.log"
case "$*" in
*--version*) echo "Cuda compilation tools, release 12.4, V12.4.131";;
*--list-gpu-code*) echo "sm_75 sm_80 sm_86 sm_90 sm_90a";;
*--dryrun*) echo '#$ LIBRARIES=  "-L/cuda/lib/stubs" "-L/cuda/lib"' >&2;;
*) [ -z "$NVCC_FAILS" ] || { echo "step.cu(7): error: of a test"; exit 2; } ;;
esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo object > "$2"; shift; done
:
"""


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def compilers(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", program(tmp_path / "bin/cxx", COMPILER))
    monkeypatch.setenv("CUDACXX", program(tmp_path / "bin/nvcc", NVCC))
    monkeypatch.delenv(cuda.SWITCH, raising=False)
    return tmp_path / "bin"


@pytest.fixture
def tree(tmp_path):
    """A copy of what an installation needs."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=BUILT)
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def install(tree, **variables):
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=100)


def report(tree):
    """(names built, reasons of those that are not) after checking that the files agree."""
    found = json.loads((tree / "greedylr_fused/_build.json").read_text())
    files = {path.name.partition(".")[0] for path in (tree / "greedylr_fused").glob("_*.so")}
    assert files == {name for name, own in found.items() if own["built"]}
    return files, {name: own["reason"] for name, own in found.items() if not own["built"]}


def test_all_modules_are_built_where_there_are_compilers(tree, compilers):
    done = install(tree)
    assert done.returncode == 0, done.stderr
    assert report(tree) == ({"_cpu", "_host", "_cuda"}, {})
    reason = json.loads((tree / "greedylr_fused/_build.json").read_text())["_cuda"]["reason"]
    assert f"{compilers}/nvcc 12.4 for sm_80, sm_90 and later" in reason and f"{compilers}/cxx" in reason
    linked = [line for line in (compilers / "cxx.log").read_text().splitlines() if "-lcudart_static" in line]
    assert len(linked) == 1 and "-L/cuda/lib -lcudart_static" in linked[0] and "--exclude-libs,ALL" in linked[0]


def test_a_kernel_that_does_not_compile_costs_its_module_only(tree):
    assert install(tree).returncode == 0
    (tree / "csrc/cuda/step.cu").touch()
    done = install(tree, NVCC_FAILS="1")
    assert done.returncode == 0, done.stderr
    built, missing = report(tree)  # the module of the first time is gone, too
    assert built == {"_cpu", "_host"} and missing["_cuda"].endswith("failed: step.cu(7): error: of a test")
    assert "_cuda is not built" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"NVCC_FAILS": "1", cuda.SWITCH: "1"}, "=1 demands greedylr_fused._cuda, and it cannot be built: "),
        ({"CUDACXX": "absent", cuda.SWITCH: "1"}, "no nvcc that can be run (CUDACXX is 'absent')"),
        ({cuda.SWITCH: "yes"}, "GREEDYLR_FUSED_CUDA: expected 0 (never) or 1 (always), got 'yes'"),
    ],
)
def test_an_installation_that_cannot_do_as_told_fails(tree, variables, message):
    done = install(tree, **variables)
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize(
    "variables, message",
    [
        ({cuda.SWITCH: "0"}, "GREEDYLR_FUSED_CUDA=0 forbade it"),
        ({"CUDACXX": "absent"}, "no nvcc that can be run (CUDACXX is 'absent'); install the CUDA toolkit"),
    ],
)
def test_an_installation_without_cuda_says_why(tree, variables, message):
    done = install(tree, **variables)
    assert done.returncode == 0, done.stderr
    built, missing = report(tree)
    assert built == {"_cpu", "_host"} and message in missing["_cuda"]


def test_an_installation_without_any_compiler_says_so(tree):
    done = install(tree, CXX="absent")
    assert done.returncode == 0, done.stderr
    built, missing = report(tree)
    assert not built and set(missing) == {"_cpu", "_host", "_cuda"}
    assert set(missing.values()) == {"CXX is 'absent', which is not a program that can be run"}


def test_nvcc_is_looked_for_where_it_mostly_is(compilers, tmp_path, monkeypatch):
    places = {name: program(tmp_path / name / "bin/nvcc", NVCC) for name in ("chosen", "home", "path", "installed")}
    monkeypatch.setenv("CUDACXX", places["chosen"])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin:/usr/bin:/bin")
    monkeypatch.setattr(cuda, "INSTALLED", places["installed"])
    for name in places:
        if name == "home":
            monkeypatch.delenv("CUDACXX")
        assert cuda.find_nvcc().program == places[name]
        Path(places[name]).unlink()
        if name == "chosen":
            with pytest.raises(native.Missing, match=r"CUDACXX is .*chosen"):
                cuda.find_nvcc()
    with pytest.raises(native.Missing, match=r"looked for .*/home/bin/nvcc, nvcc, .*/installed/bin/nvcc"):
        cuda.find_nvcc()


def test_an_old_nvcc_is_refused(compilers):
    program(compilers / "nvcc", NVCC.replace("sm_80 sm_86 sm_90 sm_90a", "sm_70"))
    with pytest.raises(native.Missing, match=r"nvcc compiles for none of sm_80, sm_90, sm_100; install a newer"):
        cuda.find_nvcc()


def test_the_host_compiler_of_nvcc_is_the_one_chosen(compilers):
    command = cuda.compile_command(cuda.find_nvcc(), ["ccache", f"{compilers}/cxx", "-m64"])
    assert command[:3] == (f"{compilers}/nvcc", f"-ccbin={compilers}/cxx", "-Xcompiler=-m64")
    assert command[-3:] == tuple(
        f"-gencode=arch=compute_{arch},code={code}"
        for arch, code in (("80", "sm_80"), ("90", "sm_90"), ("90", "compute_90"))
    )


def test_an_nvcc_that_cannot_be_started_is_refused(compilers):
    program(compilers / "nvcc", "#!/nowhere/sh\n")
    with pytest.raises(native.Missing, match="compiles for none of"):
        cuda.find_nvcc()
