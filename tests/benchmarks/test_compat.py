"""`make compat` and `make wheels`: what they try, what they write, and that the table is what the results say."""

import json
import sys

import pytest
from support.paths import ROOT

from benchmarks import compat, wheels
from benchmarks.gpu.outcome import FAILED, PASSED, Result


def results(*more):
    versions = "torch 2.11.0+cu130 triton 3.6.0 transformers 5.24.0 numpy 2.4.0"
    return [Result("torch 2.11.0", PASSED, "", 9.0), Result("versions", PASSED, versions, 1.0), *more]


def test_the_suites_are_there():
    assert all((ROOT / path).exists() for paths in compat.SUITES.values() for path in paths)
    assert {"tests/conformance", "tests/checkpoint", "tests/distributed"} <= {p[0] for p in compat.SUITES.values()}


def test_a_row_for_each_version_run_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(compat, "WORK", tmp_path)
    monkeypatch.setattr(compat, "commit", lambda: "0123abc")
    suites = (
        Result("conformance", PASSED, "7 passed", 60.0),
        Result("distributed", FAILED, "1 failed, 2 passed: x", 1.0),
    )
    assert compat.written("2.11.0", results(*suites))["outcome"] == FAILED
    rows = [line for line in compat.table(compat.read()).splitlines() if line.startswith("| 2.")]
    assert [row.split(" | ")[0] for row in rows] == ["| 2.9.1", "| 2.11.0+cu130", "| 2.13.0", "| 2.14.1"]
    cells = rows[1].strip("| ").split(" | ")
    assert cells[1] == "3.6.0" and cells[3] == "0123abc"
    assert cells[4:] == ["7 passed", "not run", "1 failed, 2 passed: x", "not run", "not run"]
    assert rows[0].count("not run") == len(compat.SUITES)


def test_a_suite_that_is_run_anew_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(compat, "WORK", tmp_path)
    for commit, *suites in (
        ("0123abc", Result("compile", PASSED, "3 passed", 1.0), Result("Triton", FAILED, "1 failed", 1.0)),
        ("4567def", Result("Triton", PASSED, "1 passed", 1.0)),
    ):
        monkeypatch.setattr(compat, "commit", lambda commit=commit: commit)
        content = compat.written("2.11.0", results(*suites))
    assert content["outcome"] == PASSED
    (row,) = (line for line in compat.table(compat.read()).splitlines() if line.startswith("| 2.11"))
    assert row.endswith("| 0123abc, 4567def | not run | not run | not run | 3 passed | 1 passed |")


def test_the_table_is_what_the_results_say():
    assert compat.table(compat.read()) == (ROOT / "benchmarks/COMPAT.md").read_text()


def test_what_was_found_of_other_pythons_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "RESULT", tmp_path / "wheels.json")
    for tag in ("cp313", "cp310"):
        steps = [Result("source distribution", PASSED, "", 1.0), Result(f"{tag}: wheel", PASSED, "", 1.0)]
        wheels.record([*steps, Result(f"{tag}: the wheel, no compiler", FAILED, "exit code 1", 1.0)], None)
    content = json.loads((tmp_path / "wheels.json").read_text())
    assert list(content) == ["cp310", "cp313"] and content["cp310"]["torch"] == "none"
    assert content["cp310"]["steps"] == {"wheel": "passed", "the wheel, no compiler": "failed exit code 1"}


def test_only_what_the_configuration_names_is_built(monkeypatch):
    """Its versions are those that cibuildwheel reads; another interpreter is passed over."""
    assert wheels.configured() == ["310", "311", "312", "313", "314"]
    monkeypatch.setattr(wheels, "configured", list)
    runner = wheels.Runner(ROOT, {}, 60.0, say=lambda _: None)
    wheels.tried(runner, sys.executable, None, {})
    assert [result.detail for result in runner.results] == [f"{sys.version_info.major}{sys.version_info.minor}"]


@pytest.mark.parametrize("name", wheels.NVCC)
def test_the_packages_with_nvcc_are_those_of_the_documentation(name):
    assert f'"{name}"' in (ROOT / "docs/install.md").read_text()
