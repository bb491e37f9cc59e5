"""The runner of `make gpu-check`, with stages that pass, fail, hang, die and cannot run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import ROOT

from benchmarks import gpu_check
from benchmarks.gpu import outcome, stages
from benchmarks.gpu.outcome import FAILED, PASSED, SKIPPED
from benchmarks.gpu.runner import Command, Runner, Stage


def python(code, limit=30.0, **options):
    return Command([sys.executable, "-c", code], limit, **options)


@pytest.fixture
def said():
    return []


@pytest.fixture
def runner(tmp_path, said):
    return Runner(tmp_path, dict(os.environ), seconds=60, say=said.append)


def only(runner, plan, **options):
    (result,) = runner.run([Stage("one", lambda: plan, **options)])
    return result


def test_a_stage_passes_with_what_pytest_counted(runner):
    outputs = ("=== 12 passed, 2 skipped in 3.1s ===", "1 passed in 0.02s", "3 passed in a sentence")
    result = only(runner, [python(f"print({output!r})") for output in outputs])
    assert (result.outcome, result.detail) == (PASSED, "13 passed, 2 skipped")


def test_a_failure_names_the_first_lost_test(runner):
    code = "print('FAILED tests/gpu/test_a.py::test_b[x] - assert 0\\n1 failed, 3 passed in 0.1s'); exit(1)"
    result = only(runner, [python(code)])
    assert (result.outcome, result.detail) == (FAILED, "1 failed, 3 passed: test_a.py::test_b[x]")


def test_a_failure_without_tests_shows_its_last_line(runner):
    result = only(runner, [python("print('half'); raise SystemExit('out of paper')")])
    assert (result.outcome, result.detail) == (FAILED, "exit code 1: out of paper")
    result = only(runner, [python("import os; os.abort()")])
    assert result.outcome == FAILED and result.detail.startswith("signal 6")
    result = only(runner, [Command(["no-such-program"], 5)])
    assert result.outcome == FAILED and "cannot be started" in result.detail


HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def test_a_process_that_hangs_loses_neither_its_output_nor_the_stages_after_it(runner, monkeypatch):
    """It ignores the polite request, and has started another process, which ends with it."""
    monkeypatch.setattr("benchmarks.gpu.runner.GRACE", 0.5)
    hung = Stage("hung", lambda: [python(HANGS, limit=3.0), python("print('1 passed in 1s')")])
    results = runner.run([hung, Stage("beside", lambda: [python("")])], workers=3)
    assert [result.outcome for result in results] == [FAILED, PASSED]
    assert results[0].detail == "not done within 3 s"
    child = int(results[0].commands[0].output.split()[1])
    status = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child still runs")
    assert only(runner, [python("")]).outcome == PASSED


def test_what_a_machine_cannot_do_is_left_out_with_the_reason(runner):
    unusable = python("print('Device not supported'); exit(1)", unusable=("Device not supported",))
    result = only(runner, [unusable])
    assert (result.outcome, result.detail) == (SKIPPED, "cannot run here: Device not supported")
    result = only(runner, [unusable, python("print('2 passed in 1s')")])
    assert result.outcome == PASSED
    assert result.detail == "2 passed; left out 1 of 2 processes: cannot run here: Device not supported"
    assert only(runner, "no sanitizer").detail == "no sanitizer"
    assert only(runner, [unusable, python("exit(3)")]).outcome == FAILED


def test_time_that_is_used_up_is_said(tmp_path):
    runner = Runner(tmp_path, dict(os.environ), seconds=2.5, say=lambda line: None)
    assert only(runner, [python("import time; time.sleep(600)", limit=300)]).outcome == FAILED
    result = only(runner, [python("")])
    assert (result.outcome, result.detail) == (SKIPPED, "no time left")


def test_plans_see_what_the_stages_before_have_done(runner, tmp_path):
    made = tmp_path / "made"
    runner.run([Stage("make", lambda: [python(f"open({str(made)!r}, 'w')")])])
    assert only(runner, [python("")] if made.exists() else "not made").outcome == PASSED


def test_table_files_and_exit_code(runner, tmp_path, said):
    runner.run([Stage("good", lambda: [python("print('1 passed in 1s')")]), Stage("left out", lambda: "no tool")])
    assert outcome.exit_code(runner.results) == 0
    runner.run([Stage("bad", lambda: [python("print('secret of the failure'); exit(2)")])])
    assert outcome.exit_code(runner.results) == 1
    lines = outcome.table(runner.results).splitlines()
    assert [line.split()[0] for line in lines] == ["passed", "skipped", "failed", "1"]
    assert lines[-1] == "1 passed, 1 failed, 1 skipped"
    assert lines[0].endswith("good      1 passed") and lines[1].endswith("left out  no tool")
    assert len(said) == 3 and "bad: failed" in said[2]
    outcome.write(runner.results, tmp_path / "out", "check", environment={"device": "none"})
    content = json.loads((tmp_path / "out/check.json").read_text())
    assert content["environment"] == {"device": "none"}
    assert [stage["outcome"] for stage in content["stages"]] == [PASSED, SKIPPED, FAILED]
    assert content["stages"][2]["commands"][0]["argv"][0] == sys.executable
    assert "secret of the failure" in (tmp_path / "out/check.log").read_text()


def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def test_time_is_kept_for_the_last_group(tmp_path):
    runner = Runner(tmp_path, dict(os.environ), seconds=22, say=lambda line: None)
    (result,) = runner.run([Stage("hungry", lambda: [python("import time; time.sleep(600)")])], reserve=20)
    assert result.detail == "not done within 2 s"
    assert only(runner, [python("")]).outcome == PASSED


def test_an_interruption_leaves_no_process_behind(runner, tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    pid = tmp_path / "pid"
    waits = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    runner._say = interrupt
    quick = Stage(
        "quick", lambda: [python(f"import os, time\nwhile not os.path.exists({str(pid)!r}): time.sleep(0.01)")]
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run([quick, Stage("slow", lambda: [python(waits, limit=600)])], workers=2)
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


@pytest.fixture
def machine(tmp_path):
    return stages.Machine(tmp_path)


def plans(machine):
    return {stage.name: stage.plan() for _, group in stages.groups(machine) for stage in group}


def test_every_stage_has_a_plan_for_every_backend(machine, monkeypatch):
    monkeypatch.setattr(stages, "find_sanitizer", lambda: "/somewhere/compute-sanitizer")
    machine.reasons = {"cuda": None, "triton": None}
    found = plans(machine)
    assert all(isinstance(plan, list) and plan for plan in found.values()), found
    for name in ("graph capture", "streams", "beyond 2^31 elements", "memcheck", "racecheck"):
        assert len(found[name]) == 2
    for commands in found.values():
        for command in commands:
            assert 0 < command.limit <= 150 and all(isinstance(word, str) for word in command.argv)
            files = [word for word in command.argv if word.endswith(".py")]
            assert all((ROOT / file).exists() for file in files)
    assert sum(len(found[f"conformance, {name}"]) for name in ("cuda", "triton")) == 2 * len(
        list((ROOT / "tests/conformance").glob("test_*.py"))
    )


def test_every_file_of_gpu_tests_is_in_a_stage(machine):
    machine.reasons = {"cuda": None, "triton": None}
    given = {word for plan in plans(machine).values() if isinstance(plan, list) for own in plan for word in own.argv}
    assert {f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*.py")} <= given


def test_a_backend_that_cannot_run_is_left_out(machine, monkeypatch):
    monkeypatch.setattr(stages, "find_sanitizer", lambda: None)
    machine.reasons = {"cuda": "built without nvcc", "triton": None}
    found = plans(machine)
    assert found["conformance, cuda"] == "built without nvcc"
    assert len(found["graph capture"]) == 1 and "by-triton" in found["graph capture"][0].argv
    assert "neither on PATH" in found["memcheck"]
    machine.reasons = {"cuda": "built without nvcc", "triton": "not installed"}
    assert plans(machine)["streams"] == "cuda: built without nvcc; triton: not installed"


def test_missing_packages_come_from_wheels_or_are_named(machine, tmp_path):
    assert "pytest, ninja missing or too old" in gpu_check.install(machine, ["pytest", "ninja"], tmp_path / "wheels")
    (command,) = gpu_check.install(machine, ["pytest"], tmp_path)
    assert "--no-index" in command.argv and command.argv[-1] == "pytest"


def test_a_pybind11_that_is_too_old_is_replaced():
    assert gpu_check.absent() == []
    assert gpu_check.absent(lambda package: "2.13.6") == ["pybind11"]


def test_a_python_without_torch_is_said():
    def load(name):
        raise ImportError(f"No module named {name!r}")

    assert "cannot import torch: No module named 'torch'" in gpu_check.no_gpu(load)
