"""The package is a house: rooms one floor above the other, no way up, no circle, and a part never knows the whole."""

import ast
import functools
import subprocess
import sys

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "greedylr_fused"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
#: Of the floors above the optimizer, and the package's own.
ABOVE = {"optimizer.py", "__init__.py", "autolrs", "graphs", "device_schedule", "integrations", "telemetry", "commands"}


def name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def room(module):
    """Of a module's name; None at the top of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


MODULES = {name(path): path for path in FILES}


def imported(path):
    """The modules of this package that a file imports, within functions and for type checkers too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (module for module in inner if module in MODULES)
            if not all(module in MODULES for module in inner):
                yield node.module


def test_no_import_runs_upwards():
    """The floors are in pyproject.toml; import-linter keeps them, imports for type checkers included."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


def test_the_top_of_the_package_is_seen_at_a_glance():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_files_import_each_other_in_a_circle():
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " -> ".join([*under_way[under_way.index(module) :], module])
        if module in done:
            return
        under_way.append(module)
        for other in imported(MODULES[module]):
            if other not in ("greedylr_fused", module):
                visit(other)
        done.add(under_way.pop())

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_is_entered_by_its_door(path):
    """What other rooms may use stands in the room's `__init__.py`."""
    own = room(name(path))
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom) or (other := room(node.module or "")) in (None, own):
            continue
        assert node.module == f"greedylr_fused.{other}", f"{name(path)} imports {node.module}"
        handed_on = door(other)
        for alias in node.names:
            assert alias.name in handed_on, f"{name(path)} imports {alias.name} of {other}"


@functools.cache
def door(other):
    body = tree(PACKAGE / other / "__init__.py").body
    return {alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in ABOVE], ids=name)
def test_no_part_knows_the_optimizer(path):
    names = [node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)]
    assert "FusedAdamW" not in [*names, *imported(path)]


@pytest.mark.parametrize("other", ROOMS)
def test_a_room_says_what_is_in_it(other):
    """In a few lines, and each of its files by name, but for schedules, of which each is one of a kind."""
    text = ast.get_docstring(tree(PACKAGE / other / "__init__.py"))
    assert len(text.splitlines()) <= (14 if other == "checkpoint" else 9)  # which has an example
    for path in (PACKAGE / other).glob("*.py"):
        if path.name != "__init__.py" and other not in ("schedules", "integrations", "commands"):
            assert f"`{path.name}`" in text, path.name
