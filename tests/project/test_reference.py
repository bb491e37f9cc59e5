"""docs/reference.md: every public name is in it, no other is, and each with the signature that Python has."""

import ast
import importlib
import inspect
import pkgutil
import re

import pytest
from support.paths import ROOT

from greedylr_fused import integrations, schedules

NAMED = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference.md").read_text(), re.M)
LISTED = ("greedylr_fused", "greedylr_fused.autolrs", "greedylr_fused.graphs", "greedylr_fused.telemetry")


def defined(module):
    """The public names that a file defines, which is not imported: it may need a framework."""
    body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body
    names = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [f"{module}.{name}" for name in names if not name.startswith("_")]


def public():
    for module in LISTED:
        yield from (f"{module}.{name}" for name in importlib.import_module(module).__all__)
    for module in re.findall(r"`(greedylr_fused\.integrations\.\w+)`", integrations.__doc__):
        yield from (name for name in defined(module) if not name.endswith(".Driver"))  # of use_fused_adamw


def test_the_public_names_are_in_the_reference_and_exist():
    assert sorted(NAMED) == sorted(public())
    assert {name.rpartition(".")[2] for name in NAMED if "integrations" in name} >= {"ObserveLoss", "use_fused_adamw"}


def test_the_schedules_are_in_the_reference_under_their_shorter_name():
    named = [pkgutil.resolve_name(name) for name in NAMED if "integrations" not in name]
    assert all(getattr(schedules, name) in named for name in schedules.__all__)


def test_signatures_are_those_of_python(monkeypatch):
    """They are read, as mkdocs.yml says, and not imported."""
    griffe = pytest.importorskip("griffe")
    monkeypatch.chdir(ROOT)
    extensions = griffe.load_extensions("dataclasses", "docs/reference_signatures.py")
    package = griffe.load("greedylr_fused", search_paths=["."], extensions=extensions, allow_inspection=False)
    for name in NAMED:
        read = package[name.removeprefix("greedylr_fused.")]
        if (read.is_class or read.is_function) and "integrations" not in name:
            found = [(each.name, each.kind.name) for each in read.parameters if each.name != "self"]
            value = pkgutil.resolve_name(name)
            if read.is_class and value.__init__.__module__.startswith("torch"):
                assert found == [] and name.endswith(".Muon")  # torch's own arguments, which its docstring names
                continue
            own = inspect.signature(value).parameters.values()
            assert found == [(each.name, each.kind.name.lower()) for each in own], name
