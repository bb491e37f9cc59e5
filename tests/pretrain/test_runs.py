"""Runs that end well: what they write, how they stop and go on."""

import json
import math
import shlex
import signal
from pathlib import Path

import pytest
import torch
from running import assert_same_run, contents, lines
from support.rare import few_of

RUNS = {name: ["--optimizer", name] for name in ("fused", "torch", "muon+fused")} | {"compare": ["--compare"]}


def rows_loss(rows, step):
    return next(row["loss"] for row in rows if row["run"] == "fused" and row["step"] == step and "loss" in row)


def test_compare_writes_every_output(pretrain, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain("--compare", "--steps", 12, "--eval-every", 6, "--out", out) == 0
    assert contents(out).keys() == {"run.jsonl", "config.json", "checkpoint.pt", "curves.png", "summary.json"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = lines(out)
    for run in ("fused", "torch"):
        assert [row["step"] for row in rows if row["run"] == run and "loss" in row] == list(range(1, 13))
        assert [row["step"] for row in rows if row["run"] == run and "held_out_bits_per_byte" in row] == [6, 12]
    first = [row["loss"] for row in rows if row["step"] == 1]
    assert first[0] == first[1], "one seed: both start from the same bits and see the same batch"
    summary = json.loads((out / "summary.json").read_text())
    assert {"first_loss_comparison_that_differs", "first_lr_that_differs"} <= summary.keys()
    ours, theirs = summary["runs"]["fused"], summary["runs"]["torch"]
    assert ours["host_reads_per_step"] == 0
    assert theirs["host_reads_per_step"] == 1
    assert ours["tokens"] == theirs["tokens"] == 12 * 4 * 32
    assert ours["held_out_bits_per_byte"] == pytest.approx(theirs["held_out_bits_per_byte"], rel=1e-3)
    assert ours["optimizer_ms"]["steps"] == ours["step_ms"]["steps"] == 9
    assert ours["optimizer_ms"].keys() == ours["step_ms"].keys() == {"median", "p20", "p80", "steps"}
    smoothed = [row["smoothed_loss"] for row in rows if row["run"] == "fused" and "loss" in row]
    assert ours["train_loss_bits_per_byte"] == pytest.approx(smoothed[-1] / math.log(2))
    assert summary["diverged"] is None and ours["skipped_steps"] == 0
    printed = capsys.readouterr().out
    assert "held-out loss (bits/byte)" in printed and "host reads per step" in printed
    assert f"bits/byte {rows_loss(rows, 12) / math.log(2):.3f} (smoothed" in printed


def test_a_signal_in_the_last_step_finishes_the_run(pretrain, example, monkeypatch, tmp_path):
    trainer = example("trainer").Trainer
    step = trainer.step

    def step_and_signal(self):
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", step_and_signal)
        assert pretrain("--steps", 4, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_signal_during_the_held_out_loss_is_not_lost(pretrain, example, monkeypatch, tmp_path):
    trainer = example("trainer").Trainer
    held_out_bits = trainer.held_out_bits

    def signal_first(self):
        signal.raise_signal(signal.SIGINT)
        return held_out_bits(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "held_out_bits", signal_first)
        assert pretrain("--steps", 6, "--eval-every", 3, "--out", tmp_path / "run") == 130
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["trainers"]["fused"]["steps"] == 3
    assert pretrain("--resume", tmp_path / "run") == 0
    assert [row["step"] for row in lines(tmp_path / "run") if "held_out_bits_per_byte" in row] == [3, 6]


def test_the_loss_falls_and_moves_the_learning_rate(pretrain, tmp_path):
    assert pretrain("--steps", 60, "--out", tmp_path / "run") == 0
    rows = [row for row in lines(tmp_path / "run") if "loss" in row]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["next_lr"] > rows[0]["next_lr"]


@pytest.mark.parametrize("kind", few_of(RUNS, lambda kind: kind != "torch"))
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(pretrain, tmp_path, kind):
    options = [*RUNS[kind], "--accumulate", 2, "--save-every", 4, "--eval-every", 4, "--window", 3, "--patience", 1]
    assert pretrain(*options, "--steps", 12, "--out", tmp_path / "straight") == 0
    assert pretrain(*options, "--steps", 8, "--out", tmp_path / "resumed") == 0
    assert pretrain("--resume", tmp_path / "resumed", "--steps", 12) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    if kind == "muon+fused":
        (found,) = json.loads((tmp_path / "straight" / "summary.json").read_text())["runs"].values()
        assert found["host_reads_per_step"] == 0 and found["held_out_bits_per_byte"] < 7.0
        rows = [row for row in lines(tmp_path / "straight") if "loss" in row]
        assert {row["run"] for row in rows} == {kind} and rows[-1]["next_lr"] != rows[0]["next_lr"]


@pytest.mark.parametrize(
    "number, at", [pytest.param(signal.SIGINT, 5, marks=pytest.mark.exhaustive), (signal.SIGTERM, 12)]
)
def test_a_signal_finishes_the_step_saves_and_exits(pretrain, example, monkeypatch, tmp_path, capsys, number, at):
    options = ["--compare", "--eval-every", 10, "--steps", 15]
    assert pretrain(*options, "--out", tmp_path / "straight") == 0
    trainer = example("trainer").Trainer
    step, calls = trainer.step, []

    def step_and_signal(self):
        calls.append(self.name)
        if len(calls) == at:
            signal.raise_signal(number)
        return step(self)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", step_and_signal)
        assert pretrain(*options, "--out", tmp_path / "stopped") == 128 + number
    assert signal.getsignal(number) == before
    typed = shlex.split(capsys.readouterr().out.split("go on with: ")[1])
    assert Path(typed[0]).exists() and Path(typed[1]).name == "pretrain.py"
    assert typed[2:] == ["--resume", str(tmp_path / "stopped")]
    saved = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert {name: state["steps"] for name, state in saved["trainers"].items()} == {
        name: calls.count(name) for name in ("fused", "torch")
    }
    assert len(calls) == at
    assert pretrain("--resume", tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_lines_from_after_the_checkpoint_are_dropped(pretrain, tmp_path):
    out = tmp_path / "run"
    assert pretrain("--steps", 4, "--out", out) == 0
    with (out / "run.jsonl").open("a") as file:
        file.write('{"run": "fused", "step": 5, "loss": 0.0}\n{"run": "fused", "st')
    assert pretrain("--resume", out, "--steps", 6) == 0
    assert [row["step"] for row in lines(out) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 for row in lines(out) if "loss" in row)


def test_overwrite_starts_anew(pretrain, tmp_path):
    out = tmp_path / "run"
    assert pretrain("--steps", 3, "--out", out) == 0
    (out / "notes.txt").write_text("mine")
    assert pretrain("--steps", 2, "--out", out, "--overwrite") == 0
    assert [row["step"] for row in lines(out) if "loss" in row] == [1, 2]
    assert (out / "notes.txt").read_text() == "mine"
