from greedylr_fused import available_backends, doctor


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
    } <= found.keys()
    assert all(text.strip() for text in found.values())


def test_every_backend_is_on_or_off_with_a_reason():
    states = doctor.backends()
    assert states.keys() == {f"{name} on {device}" for name in available_backends() for device in ("cpu", "cuda")}
    assert all(state == "on" or len(state) > len("off: ") for state in states.values())
    assert states["reference on cpu"] == "on"


def test_a_missing_program_and_a_missing_record_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", f"{tmp_path}/cuda")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(doctor, "_CUDA_INSTALLED", f"{tmp_path}/installed")
    monkeypatch.setattr(doctor, "_BUILD_REPORT", tmp_path / "none.json")
    found = doctor.findings()
    assert found["nvcc"] == f"not found (looked for {tmp_path}/cuda/bin/nvcc, nvcc, {tmp_path}/installed)"
    assert found["build"].startswith("no record of a build")


def test_both_tables_are_printed(capsys):
    doctor.main()
    printed = capsys.readouterr().out
    for name in (*doctor.findings(), *doctor.backends()):
        assert f"  {name} " in printed
