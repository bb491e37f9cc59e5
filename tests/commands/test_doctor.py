import builtins
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from greedylr_fused import available_backends
from greedylr_fused.__main__ import main
from greedylr_fused.commands import doctor


def test_everything_detected_has_a_text():
    found = doctor.findings()
    assert {
        "python",
        "torch",
        "triton",
        "C++ compiler",
        "nvcc",
        "CPU",
        "threads",
        "GPU",
        "looking at tensors",
        "build",
        "variables",
    } <= found.keys()
    assert all(text.strip() for text in found.values())


def test_every_backend_is_on_or_off_with_a_reason():
    states = doctor.backends()
    assert states.keys() == {f"{name} on {device}" for name in available_backends() for device in ("cpu", "cuda")}
    assert all(state == "on" or len(state) > len("off: ") for state in states.values())
    assert states["reference on cpu"] == "on"


def test_what_auto_takes_is_the_first_that_is_on():
    states, taken = doctor.backends(), doctor.choices()
    assert taken.keys() == {"on cpu", "on cuda"}
    for device, name in taken.items():
        on = [state.partition(" ")[0] for state, text in states.items() if state.endswith(device) and text == "on"]
        assert name == on[0] if on else name == "PyTorch finds no CUDA device"


def test_frameworks_are_told_without_importing_them(monkeypatch):
    versions = {"transformers": "5.99.1", "pytorch_lightning": "2.98"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    before = set(sys.modules)
    found = doctor.findings()
    assert found["transformers"] == "5.99.1" and found["pytorch_lightning"] == "2.98"
    assert found["lightning"] == found["accelerate"] == "not installed"
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in found}


def test_a_missing_program_and_a_missing_record_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "  ")
    monkeypatch.setenv("CUDA_HOME", f"{tmp_path}/cuda")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(doctor, "_CUDA_INSTALLED", f"{tmp_path}/installed")
    monkeypatch.setattr(doctor, "_BUILD_REPORT", tmp_path / "none.json")
    found = doctor.findings()
    assert found["C++ compiler"] == "not found (looked for c++, g++, clang++)"
    assert found["nvcc"] == f"not found (looked for {tmp_path}/cuda/bin/nvcc, nvcc, {tmp_path}/installed)"
    assert found["build"].startswith("no record of a build")
    assert f"CUDA_HOME={tmp_path}/cuda" in found["variables"]


def test_a_program_that_cannot_be_started_is_said(monkeypatch, tmp_path):
    program = tmp_path / "cxx"
    program.write_text("#!/nowhere/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    assert doctor.findings()["C++ compiler"].startswith(f"{program}: cannot be run (FileNotFoundError: ")


def test_a_damaged_machine_still_gets_its_report(monkeypatch, tmp_path, capsys):
    """Closed files under /proc, a record that is no JSON, a CUDA runtime that fails, a backend that cannot be asked."""
    record = tmp_path / "_build.json"
    record.write_text("{")
    monkeypatch.setattr(doctor, "_BUILD_REPORT", record)

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    def broken(*_):
        raise RuntimeError("CUDA error:\n  unknown")

    monkeypatch.setattr(Path, "read_text", closed)
    monkeypatch.setattr(builtins, "open", closed)
    monkeypatch.setattr(doctor.torch.cuda, "is_available", broken)
    doctor.main()
    lines = capsys.readouterr().out.splitlines()
    found = {line[:22].strip(): line[22:] for line in lines}
    assert found["CPU"].endswith(" cores") and found["instruction set"]
    assert found["build"].startswith("unknown (PermissionError: ")
    assert found["GPU"] == "unknown (RuntimeError: CUDA error: unknown)"
    assert lines.count("  unknown  RuntimeError: CUDA error: unknown") == 2  # for both tables of backends


def test_all_tables_are_printed(capsys):
    doctor.main()
    printed = capsys.readouterr().out
    for name in (*doctor.findings(), *doctor.backends(), *doctor.choices()):
        assert f"  {name} " in printed


@pytest.mark.parametrize("word", ["doctor", "--help"])
def test_a_reader_may_leave_early(word):
    """As `head -1` does; here before the first line, so that the very first write fails."""
    command = [sys.executable, "-m", "greedylr_fused", word]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(100) == 0 and said == ""


def test_an_unknown_command_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctr"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "expected one of 'doctor', 'refine', 'bench', 'plot', got 'doctr'; --help says what each does" in said
