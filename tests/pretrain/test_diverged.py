"""Runs that meet NaN and infinities: nothing is hidden, nothing good is overwritten, all files stay JSON."""

import json
import math
import signal

import pytest
import torch
from running import contents, lines


def strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def broken_steps(example, monkeypatch):
    """`broken_steps(name, numbers)`: give NaN as loss, and so as gradient, in these steps of that trainer."""

    def breaks(name, numbers):
        trainer = example("trainer").Trainer
        backward = trainer._backward

        def broken(self, **options):
            loss = backward(self, **options)
            if self.name == name and self.steps + 1 in numbers:
                for parameter in self.model.parameters():
                    parameter.grad.fill_(math.nan)
                return torch.full_like(loss, math.nan)
            return loss

        monkeypatch.setattr(trainer, "_backward", broken)

    return breaks


SKIPPED = pytest.mark.filterwarnings("ignore:FusedAdamW. 10 steps in a row were skipped")


@SKIPPED
def test_a_diverged_run_says_so_and_fails(pretrain, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain("--lr", 1e9, "--steps", 20, "--log-every", 5, "--out", out) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "19 of 20 steps were skipped for non-finite gradients; try a lower --lr" in said.err
    assert "no checkpoint was saved" in said.err
    assert "bits/byte skipped" in said.out and "19 skipped" in said.out and "nan" in said.out
    rows = [strictly(line) for line in (out / "run.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert [row["skipped"] for row in steps] == list(range(20))
    assert all(row["loss"] is None and row["better"] is None for row in steps[1:])
    summary = strictly((out / "summary.json").read_text())
    assert summary["runs"]["fused"]["skipped_steps"] == 19
    assert summary["runs"]["fused"]["held_out_bits_per_byte"] is None
    assert "19 of 20" in summary["diverged"]
    assert contents(out).keys() == {"run.jsonl", "config.json", "curves.png", "summary.json"}


@SKIPPED
def test_bad_steps_in_a_row_end_a_run_and_leave_the_checkpoint_before(pretrain, broken_steps, tmp_path, capsys):
    broken_steps("fused", range(6, 100))
    assert pretrain("--steps", 60, "--save-every", 5, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "20 of 25 steps were skipped" in error and "the checkpoint before it stays" in error
    # Skipped steps left a model with a finite loss, so it was saved on.
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainers"]["fused"]["steps"] == 20


def test_a_model_without_a_finite_loss_is_not_saved(pretrain, broken_steps, tmp_path, capsys):
    broken_steps("torch", [6])  # the baseline does not skip: its parameters are NaN from then on
    assert pretrain("--optimizer", "torch", "--steps", 60, "--save-every", 5, "--out", tmp_path / "run") == 1
    assert "torch: the loss is not finite since step 6" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainers"]["torch"]["steps"] == 5
    summary = strictly((tmp_path / "run" / "summary.json").read_text())
    assert summary["runs"]["torch"]["train_loss_bits_per_byte"] is None


def test_ctrl_c_does_not_save_a_model_without_a_finite_loss(
    pretrain, example, broken_steps, monkeypatch, tmp_path, capsys
):
    broken_steps("torch", [6])
    step = example("trainer").Trainer.step

    def step_and_signal(self):
        if self.steps == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(example("trainer").Trainer, "step", step_and_signal)
    options = ["--optimizer", "torch", "--steps", 60, "--save-every", 5]
    assert pretrain(*options, "--out", tmp_path / "run") == 130
    assert "not saved: torch: the loss is not finite since step 6" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainers"]["torch"]["steps"] == 5


def test_a_few_skipped_steps_are_counted_and_survive_a_resume(pretrain, broken_steps, tmp_path, capsys):
    broken_steps("fused", [3, 4, 8])
    assert pretrain("--steps", 10, "--out", tmp_path / "straight") == 0
    assert "warning: fused: 3 of 10 steps were skipped" in capsys.readouterr().out
    rows = [row for row in lines(tmp_path / "straight") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["step"] for row in rows if row["loss"] is None] == [3, 4, 8]
    assert pretrain("--steps", 4, "--eval-every", 10, "--out", tmp_path / "resumed") == 0
    (tmp_path / "resumed" / "summary.json").unlink()
    assert pretrain("--resume", tmp_path / "resumed", "--steps", 10) == 0
    summary = json.loads((tmp_path / "resumed" / "summary.json").read_text())
    assert summary["runs"]["fused"]["skipped_steps"] == 3
    assert [row["step"] for row in lines(tmp_path / "resumed") if "loss" in row] == list(range(1, 11))


def test_a_comparison_shows_the_baselines_nan(pretrain, broken_steps, tmp_path, capsys):
    broken_steps("torch", [6])
    assert pretrain("--compare", "--steps", 10, "--log-every", 5, "--out", tmp_path / "run") == 1
    said = capsys.readouterr()
    assert "torch  step   10/10  bits/byte nan" in said.out
    assert "torch: the loss is not finite since step 6" in said.err
    found = strictly((tmp_path / "run" / "summary.json").read_text())["runs"]
    assert found["torch"]["held_out_bits_per_byte"] is None and found["fused"]["held_out_bits_per_byte"] > 0
