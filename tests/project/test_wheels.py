"""What `python -m build` makes: a source distribution, a wheel of it, and an installation that needs no compiler."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import native_build as native
import pytest
import torch
from support.paths import ROOT
from support.sanitizers import compiler_here

pytestmark = pytest.mark.wheels

#: What a checkout has at its top that a build reads; all of it, with what was built in it, as where one develops.
TREE = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")
FOLDERS = ("csrc", "greedylr_fused", "tests")
PLATFORM = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
#: All that a compiled module may be linked with: the C library, and what every C++ compiler brings.
LIBRARIES = re.compile(r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|ld-linux-[\w-]+)\.so\.\d")


def run(*command, cwd, env=None):
    """What it prints; in a process group of its own, which ends if it takes too long."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(list(map(str, command)), cwd=cwd, env=env, **pipes) as process:
        try:
            said = process.communicate(timeout=280)[0]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Of a copy of this tree, since building writes beside setup.py."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in TREE:
        shutil.copy2(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder / "dist", cwd=folder)
    (found,) = (folder / "dist").glob("*")
    return found


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Of the unpacked source distribution and nothing else. Objects that this tree has compiled are taken along: ninja
    compiles again what differs from it, in its text or in what it includes.
    """
    compiler_here()
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # where Python has it, it warns without
        archive.extractall(folder)
    (tree,) = folder.iterdir()
    for module in ("cpu", "host"):
        if (objects := ROOT / "build" / f"{module}-{PLATFORM}").exists():
            shutil.copytree(objects, tree / "build" / objects.name)
    env = {**os.environ, "GREEDYLR_FUSED_CUDA": "0"}
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", cwd=tree, env=env)
    (found,) = (folder / "dist").glob("*")
    return found


#: The first block of the README, and by which backend it stepped.
BLOCK = """import re, sys
exec(re.search(r"```python\\n(.*?)```", open(sys.argv[1]).read(), re.S)[1])
print(re.search(r"backend: \\w+", repr(opt))[0])"""


class Installed:
    """A virtual environment that has the package from a folder of wheels or source distributions, as an index is, and
    sees torch where the tests have it, after its own packages. No program is on its PATH but the environment's own.
    """

    def __init__(self, folder, index):
        self.python = folder / "venv/bin/python"
        venv.create(folder / "venv", symlinks=True)
        self.folder, self.empty = folder, folder / "empty"
        self.empty.mkdir()
        (self.packages,) = (folder / "venv").glob("lib/python*/site-packages")
        paths = sysconfig.get_paths()
        seen = dict.fromkeys([str(Path(torch.__file__).parent.parent), paths["purelib"], paths["platlib"]])
        (self.packages / "torch_of_the_tests.pth").write_text("".join(f"{path}\n" for path in seen))
        kept = {
            name: value for name, value in os.environ.items() if not re.match("PYTHON|CXX|CUDA|GREEDYLR|TRITON", name)
        }
        self.env = {**kept, "PATH": str(self.python.parent)}
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--ignore-installed")
        source = ("--no-index", "--find-links", index, "greedylr_fused")
        run(self.python, "-m", "pip", "install", *options, *source, cwd=self.empty, env=self.env)
        self.env["PYTHONWARNINGS"] = "error"

    def first_block(self):
        return run(self.python, "-c", BLOCK, ROOT / "README.md", cwd=self.empty, env=self.env)

    def smoke(self, backend):
        """Run the smoke test from an empty folder."""
        said = run(self.python, ROOT / "tests/smoke.py", backend, cwd=self.empty, env=self.env)
        assert f" in {self.packages}/greedylr_fused, backend {backend}" in said
        assert re.search(r"C\+\+ compiler +not found", said)
        return said


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"), wheel.parent)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sdist_has_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {
        str(p.relative_to(ROOT))
        for p in sources
        if "__pycache__" not in p.parts and p.suffix != ".so" and p.name != "_build.json"
    }
    assert wanted | set(TREE) <= names
    assert not [name for name in names if re.search(r"\.so$|_build\.json$|\.pyc$|^build/|^benchmarks/", name)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_has_the_package_and_nothing_else(wheel):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = HeaderParser().parsestr(archive.read(metadata).decode())
    package = {name for name in names if name.startswith("greedylr_fused/")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "greedylr_fused").rglob("*.py")}
    made = {f"greedylr_fused/{name}" for name in ("py.typed", "_build.json", f"_cpu{suffix}", f"_host{suffix}")}
    assert package == sources | made
    assert {name.partition("/")[0] for name in names} == {"greedylr_fused", Path(metadata).parent.name}
    assert wheel.name.endswith(f"-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}.whl")
    assert described["Requires-Python"] == ">=3.10" and "torch>=2.9" in described.get_all("Requires-Dist")
    supported = [c.rpartition(" :: ")[2] for c in described.get_all("Classifier") if re.search(r":: 3\.\d+$", c)]
    assert supported == ["3.10", "3.11", "3.12", "3.13"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_modules_need_no_library_beyond_the_systems(installed):
    modules = sorted((installed.packages / "greedylr_fused").glob("*.so"))
    assert len(modules) == 2
    for module in modules:
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", module, cwd=installed.folder))
        assert needed and all(LIBRARIES.fullmatch(library) for library in needed), needed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_works_without_a_compiler_and_without_its_modules(installed):
    assert "backend: cpu" in installed.first_block()
    assert re.search(r"looking at tensors +compiled", installed.smoke("cpu"))
    for module in (installed.packages / "greedylr_fused").glob("*.so"):
        module.rename(module.with_suffix(".gone"))
    said = installed.smoke("reference")
    assert re.search(r"cpu on cpu +off: greedylr_fused._cpu is not usable", said)
    assert re.search(r"looking at tensors +in Python: ", said)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_source_distribution_installs_without_a_compiler_and_runs_the_readme(sdist, tmp_path):
    """By the backend that needs none, and says why the others are off."""
    found = Installed(tmp_path, sdist.parent)
    assert "backend: reference" in found.first_block()
    assert not list((found.packages / "greedylr_fused").glob("*.so"))
    assert "no C++ compiler on PATH" in (found.packages / "greedylr_fused/_build.json").read_text()


def test_a_tree_that_was_copied_with_its_objects_compiles_nothing(tmp_path, monkeypatch):
    """Which lets the tests above build wheels in seconds."""
    compiler = compiler_here()
    first, second = tmp_path / "first", tmp_path / "deeper/second"
    (first / "csrc").mkdir(parents=True)
    (first / "csrc/answer.h").write_text("#define ANSWER 42\n")
    (first / "csrc/answer.cpp").write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')

    def built(tree):
        monkeypatch.setattr(native, "CSRC", tree / "csrc")
        unit = native.Object("answer.cpp", "answer")
        native.build(
            compiler, [unit], tree / "answer.so", tree / "build/objects", link_flags=native.module_link_flags()
        )
        return (tree / "build/objects/answer.o").stat().st_mtime_ns

    before = built(first)
    shutil.copytree(first, second)
    assert built(second) == before
    (second / "csrc/answer.h").write_text("#define ANSWER 43\n")
    assert built(second) > before
    assert built(first) == before


def test_cibuildwheel_runs_the_smoke_test_on_the_versions_that_are_declared():
    tables = (ROOT / "pyproject.toml").read_text().partition("[tool.cibuildwheel]")
    declared = re.findall(r"Python :: 3\.(\d+)", tables[0])
    assert [*declared, "14"] == re.findall(r"cp3(\d+)-\*", re.search(r"^build = .*$", tables[2], re.M)[0])
    (script,) = re.findall(r"\{project\}/([\w./]+)", tables[2])
    assert ROOT / script == ROOT / "tests/smoke.py" and (ROOT / script).exists()
