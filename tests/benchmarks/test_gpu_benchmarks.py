"""Whole training steps, the cost of control and the summary of a GPU check, as far as a CPU goes."""

import json

import pytest
import torch

from benchmarks import report
from benchmarks.cases.shapes import Shapes
from benchmarks.gpu import summary
from benchmarks.host import control_cost, syncs
from benchmarks.options import Asked
from benchmarks.throughput import gpt_steps, train_step

CPU = torch.device("cpu")


def test_host_syncs_are_counted():
    value = torch.ones(3)

    def step():
        float(value.sum())
        bool(value.max() > 0)
        value.add_(1)

    assert syncs.per_step(step, CPU) == 2
    assert syncs.per_step(lambda: value.add_(1), CPU) == 0


@pytest.fixture
def small(monkeypatch):
    shape = gpt_steps.Shape(layers=1, width=16, heads=2, kv_heads=2, hidden=32, context=8)
    size = gpt_steps.Size("small", shape, batch=2)
    monkeypatch.setitem(train_step.SIZES, "small", size)
    return size


def test_both_ways_make_the_same_step(small):
    """Within the rounding of the norm: five steps from the same start."""
    fused, unfused = (gpt_steps.CONTENDERS[name](small, CPU) for name in ("fused", "unfused"))
    for _ in range(5):
        fused()
        unfused()
    for a, b in zip(fused.model.parameters(), unfused.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert list(fused.optimizer.metrics().lr) == list(unfused.optimizer.metrics().lr)


def test_a_training_step_is_recorded(small, tmp_path, capsys):
    found = train_step.run(["small"], Asked(CPU, 0.1, out=tmp_path))
    records = {record["contender"]: record for record in found.records}
    assert records.keys() == {"fused", "unfused"}
    assert [records[name]["host_syncs_per_step"] for name in ("fused", "unfused")] == [0, 1]
    assert records["unfused"]["speedup"]["median"] == 1.0
    assert all(0 < record["optimizer_percent"] < 200 for record in records.values())
    assert {entry["what"] for entry in found.left_out} == {"small fused, graph", "small unfused, graph"}
    train_step.print_report(found)
    assert "x unfused" in capsys.readouterr().out
    assert json.loads((tmp_path / "train_step.json").read_text())["records"] == found.records


@pytest.mark.parametrize("module", [train_step, control_cost], ids=lambda module: module.__name__)
def test_no_case_is_begun_when_the_time_is_over(module):
    late = module.run(["any"], Asked(CPU, 1.0, until=0.0))
    assert late.left_out == [{"what": "any", "why": report.OVER}] and not late.records


def test_what_greedylr_adds_is_recorded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(control_cost.CASES, "two", lambda: Shapes("two", "", ((3,), (2, 2))))
    found = control_cost.run(["two"], Asked(CPU, 0.05, out=tmp_path))
    records = {(record["family"], record["schedule"]): record for record in found.records}
    assert {family for family, _ in records} == {"ours-cpu", "torch-fused"}
    for (family, schedule), record in records.items():
        assert (record["added_us"] is None) == (schedule == "no schedule")
        assert record["host_syncs_per_step"] == (family == "torch-fused" and schedule != "no schedule")
    control_cost.print_report(found)
    assert "added us" in capsys.readouterr().out
    lines = summary.highlights(tmp_path)
    assert len(lines) == 3 and all("syncs per step" in line for line in lines)


def spread(value):
    return {"median": value, "p20": value, "p80": value, "count": 3}


def file(folder, name, *records):
    content = {"benchmark": name, "environment": {}, "config": {}, "records": records, "left_out": []}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_summary_and_figure(tmp_path):
    """Of what a GPU would leave: device times, graphs, torch's beside ours."""
    step = {"shapes": "flat", "mix": "bf16", "ms": spread(1.5), "device_ms": spread(1.25)}
    ours = {"contender": "ours-cuda", "share_of_roofline": spread(0.9), "ratio_device": spread(1.5)}
    torchs = {"contender": "torch-fused", "share_of_roofline": None, "ratio": spread(1.0), "ratio_device": None}
    file(tmp_path, "step_throughput", step | ours, step | torchs, step | {"contender": "roofline"})
    file(tmp_path, "roofline", {"traffic": "copy", "gb_per_s": spread(3000.0)})
    trained = {"model": "tiny", "contender": "fused, graph", "ms": spread(2.0), "speedup": spread(1.25)}
    file(tmp_path, "train_step", trained | {"host_syncs_per_step": 0})
    (tmp_path / "host_overhead.json").write_text("{}")  # damaged
    assert summary.highlights(tmp_path) == [
        "copy: 3,000 GB/s",
        "flat bf16 ours-cuda: 1.250 ms, 0.900 of the roofline, 1.50x torch",
        "flat bf16 torch-fused: 1.250 ms, 1.00x torch",
        "training step tiny, fused, graph: 2.00 ms, 1.25x unfused, 0 syncs per step",
    ]
    pytest.importorskip("matplotlib")
    summary.figure(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert summary.highlights(tmp_path / "nowhere") == []
