"""Rules of the repository that are easier to test than to remember."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

import greedylr_fused
from greedylr_fused import schedules

PACKAGE = sorted((ROOT / "greedylr_fused").rglob("*.py"))
PYTHON = sorted(
    p for d in ("greedylr_fused", "tests", "examples", "benchmarks", "csrc") for p in (ROOT / d).rglob("*.py")
)
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_no_framework_header_in_the_core(path):
    includes = re.findall(r"#\s*include\s*[<\"]([^>\"]+)", path.read_text())
    assert not [i for i in includes if re.match(r"(torch|ATen|c10)\b", i)]
    if path.parent.name == "core":
        assert not [i for i in includes if "pybind" in i or i in ("vector", "string", "map", "memory", "iostream")]


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=name)
def test_files_are_short(path):
    longest = 520 if name(path) == "greedylr_fused/optimizer.py" else 300  # mostly docstrings of the public interface
    assert len(path.read_text().splitlines()) <= longest


def test_test_modules_have_names_of_their_own():
    """pytest imports each under its bare name, and stops at the second of one name."""
    names = [path.name for path in PYTHON if path.name.startswith("test_")]
    assert not {found for found in names if names.count(found) > 1}


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


#: What makes a tensor out of numbers, on whatever device is the default one.
FACTORIES = "arange as_tensor empty eye full linspace ones rand randint randn scalar_tensor tensor zeros".split()


@pytest.mark.parametrize("path", [path for path in PACKAGE if path.parent.name != "triton"], ids=name)
def test_every_tensor_is_made_on_a_device_that_is_named(path):
    """`with torch.device("meta")`, or torch.set_default_device, is of the user's tensors."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in [f"torch.{factory}" for factory in FACTORIES]:
            assert "device" in [keyword.arg for keyword in node.keywords], f"line {node.lineno}: {ast.unparse(node)}"


def test_the_public_names_are_documented():
    for exported in greedylr_fused.__all__:
        value = getattr(greedylr_fused, exported)
        if exported == "__version__":
            assert re.fullmatch(r"\d+\.\d+\.\d+\S*", value)
            continue
        assert inspect.getdoc(value), exported
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) and not attribute.startswith("_"):
                assert inspect.getdoc(member), f"{exported}.{attribute}"


def test_the_package_exports_what_steps_and_every_schedule():
    kinds = (schedules.StepSchedule, schedules.LossSchedule)
    built = {name for name in schedules.__all__ if issubclass(getattr(schedules, name), kinds)}
    built -= {kind.__name__ for kind in kinds}
    others = {"DeviceSchedule", "FusedAdamW", "Mechanic", "Metrics", "Muon", "SkipSpikes"}
    others |= {"__version__", "available_backends"}
    assert set(greedylr_fused.__all__) == others | built and len(greedylr_fused.__all__) == len(others | built)
    assert len((ROOT / "greedylr_fused/__init__.py").read_text().splitlines()) < 40


def test_all_lists_exist():
    for module in pkgutil.walk_packages(greedylr_fused.__path__, "greedylr_fused."):
        if not module.name.rpartition(".")[2].startswith(("_", "triton", "torchtitan")):  # which may be absent
            found = importlib.import_module(module.name)
            assert all(hasattr(found, exported) for exported in getattr(found, "__all__", []))


def test_importing_stays_light():
    """Neither transformers nor the interpreter's helpers are needed to train, nor the compiler to read a record."""
    heavy = ("transformers", "pytest", "matplotlib", "rich", "torch._dynamo")
    code = f"import sys, greedylr_fused; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", [*PACKAGE, *DOCUMENTS], ids=name)
def test_the_unit_is_observations(path):
    assert not re.search(r"\bepochs?\b", path.read_text(), re.I)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_in_documents_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_paths_in_documents_exist(path):
    """Names in backquotes that look like files of this repository."""
    for target in re.findall(r"`((?:greedylr_fused|csrc|tests|examples|benchmarks)/[\w./-]*)`", path.read_text()):
        assert (ROOT / target).exists() or "results" in target, target


def test_make_targets_in_documents_exist():
    makefile = ROOT / "Makefile"
    if not makefile.exists():
        pytest.skip("no Makefile in this checkout")
    targets = set(re.findall(r"^([\w-]+):", makefile.read_text(), re.M))
    for path in DOCUMENTS:
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", path.read_text(), re.M):
            assert target in targets, f"{name(path)}: make {target}"
