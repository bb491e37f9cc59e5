"""Runs by --schedule autolrs: trials are undone, the best LR trains on, and a stop in the middle changes nothing."""

import importlib.util
import json
import math
import signal

import pytest
import torch
from running import assert_same_run, lines

from greedylr_fused.autolrs import AutoLRS, candidates

pytest.importorskip("sklearn")
SEARCH = ("--schedule", "autolrs", "--trial-steps", 4)


@pytest.fixture
def undrawn(example, monkeypatch):
    """Pictures take longer than these runs."""
    monkeypatch.setattr(example("report"), "draw", lambda *_: None)


@pytest.fixture
def short(example, monkeypatch):
    """Three LRs in turn, stages of 12 and 8 steps that do not double, and validation losses from the second one on."""

    def search(config):
        options = dict(trial_steps=4, stage_steps=8, max_stage_steps=8, trials=3, total_steps=config.steps)
        return AutoLRS(config.lr / 10, config.lr * 10, **options)

    monkeypatch.setattr(example("lr_schedules"), "search", search)
    monkeypatch.setattr(candidates, "first", lambda low, high, seed: low)
    monkeypatch.setattr(candidates, "following", lambda told, low, high, seed: (low * 10 ** len(told), told))


def steps_of(rows):
    return [row for row in rows if "loss" in row]


@pytest.mark.slow
def test_trials_begin_at_one_state_and_the_best_lr_trains_on(pretrain, tmp_path, capsys):
    """With the Gaussian process, and drawn."""
    out = tmp_path / "run"
    assert pretrain(*SEARCH, "--steps", 85, "--eval-every", 30, "--window", 3, "--out", out) == 0
    rows = steps_of(lines(out))
    assert [row["step"] for row in rows] == list(range(1, 86))
    trials = [[row for row in rows if row["trial"] == number] for number in range(1, 11)]
    assert [len(trial) for trial in trials] == [4] * 10
    training = rows[40:]
    assert all(row["trial"] is None for row in training)
    begins = [trial[0]["loss"] for trial in trials] + [training[0]["loss"]]
    assert len(set(begins)) == 1, "the same weights and batch, to the bit"
    assert len({trial[1]["loss"] for trial in trials}) == 10 == len({trial[0]["trial_lr"] for trial in trials})

    forecasts = {trial[3]["trial_lr"]: trial[3]["forecast"] for trial in trials}
    best = min(forecasts, key=forecasts.get)
    assert {row["next_lr"] for row in training} == {best} and rows[39]["next_lr"] == best
    assert [trial[0]["next_lr"] for trial in trials] == [trial[0]["trial_lr"] for trial in trials]
    assert [trial[3]["next_lr"] for trial in trials[:-1]] == [trial[0]["trial_lr"] for trial in trials[1:]]
    twin = next(trial for trial in trials if trial[0]["trial_lr"] == best)
    assert [row["loss"] for row in twin] == [row["loss"] for row in training[:4]], "training repeats the trial"
    assert training[0]["smoothed_loss"] == training[0]["loss"], "no mean over losses of several trials"

    assert [row["step"] for row in lines(out) if "held_out_bits_per_byte" in row] == [60, 85], "of no trial"
    (found,) = json.loads((out / "summary.json").read_text())["runs"].values()
    assert (found["search_steps"], found["training_steps"]) == (40, 45)
    assert found["tokens"] == 85 * 4 * 32 and found["host_reads_per_step"] == 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "AutoLRS: 10 trials of 4 steps for the first 40 of training" in said and "LRs from 0.0003 to 0.03" in said
    assert "steps of trials, undone" in said


@pytest.mark.slow
def test_a_run_stopped_anywhere_goes_on_to_the_bit(pretrain, example, short, undrawn, monkeypatch, tmp_path):
    """In a trial, after one, in the training, in a trial with validation losses, in the training to the end."""
    options = ["--schedule", "autolrs", "--steps", 43, "--eval-every", 5, "--accumulate", 2, "--window", 6]
    assert pretrain(*options, "--out", tmp_path / "straight") == 0
    trainer = example("searching").SearchingTrainer
    step = trainer.step

    def step_and_signal(self):
        if self.steps == at - 1:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    for at in (2, 4, 16, 22, 36):
        stopped = tmp_path / f"stopped{at}"
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "step", step_and_signal)
            assert pretrain(*options, "--out", stopped) == 128 + signal.SIGINT
        assert steps_of(lines(stopped))[-1]["step"] == at
        assert pretrain("--resume", stopped) == 0
        assert_same_run(tmp_path / "straight", stopped)
    saved = torch.load(tmp_path / "straight" / "checkpoint.pt", weights_only=True)["trainers"]["fused"]["search"]
    assert [each["validation"] for each in saved["progress"]["stages"]] == [False, True]


def test_a_longer_run_searches_on_with_the_same_lengths(pretrain, short, undrawn, tmp_path):
    options = ["--schedule", "autolrs", "--out", tmp_path / "run"]
    assert pretrain(*options, "--steps", 39) == 0
    assert steps_of(lines(tmp_path / "run"))[-1]["stage"] == 1
    assert pretrain("--resume", tmp_path / "run", "--steps", 60) == 0
    rows = steps_of(lines(tmp_path / "run"))
    assert [row["step"] for row in rows] == list(range(1, 61)) and rows[-1]["stage"] == 2
    assert [row["step"] for row in rows if row["trial"]] == [*range(1, 13), *range(40, 52)]


def test_a_trial_that_diverges_ends_and_the_run_goes_on(pretrain, example, short, undrawn, monkeypatch, tmp_path):
    trainer = example("searching").SearchingTrainer
    backward = trainer._backward

    def broken(self, **options):
        loss = backward(self, **options)
        if self.search.ask().lr == 3e-3:  # the second of three
            self.model.embedding.weight.grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(trainer, "_backward", broken)
    assert pretrain("--schedule", "autolrs", "--steps", 30, "--out", tmp_path / "run") == 0
    rows = steps_of(lines(tmp_path / "run"))
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["trial"] for row in rows[:10]] == [1] * 4 + [2] + [3] * 4 + [None]
    assert rows[4]["forecast"] == 1e6 and rows[4]["loss"] is None and rows[4]["skipped"] == 1
    assert rows[-1]["skipped"] == 0, "undone"


def test_several_ranks_are_refused(example):
    config, ranks = example("config"), example("engine").Ranks(0, 2, launched=True)
    ranks.use("ddp")
    made = config.new_config({"size": "micro", "device": "cpu", "steps": 80, "schedule": "autolrs"})
    with pytest.raises(example("errors").UsageError, match="--schedule autolrs: its trials are those of one process"):
        config.check_ranks(made, ranks)


def test_without_the_extra_it_is_one_line(pretrain, monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    assert pretrain(*SEARCH, "--steps", 80, "--out", tmp_path / "run") == 2
    assert "pip install greedylr_fused[autolrs]" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert pretrain("--steps", 1, "--out", tmp_path / "run") == 0, "other schedules need it not"


@pytest.mark.parametrize("steps, tau", [(80, 4), (400, 20), (2_000, 100), (100_000, 100)])
def test_trials_are_as_long_as_the_run_allows(example, steps, tau):
    made = example("config").new_config({"size": "micro", "device": "cpu", "steps": steps, "schedule": "autolrs"})
    assert made.trial_steps == tau and example("lr_schedules").search(made).total_steps == steps


def test_a_search_on_the_device_is_a_schedule_like_others(pretrain, undrawn, tmp_path, capsys):
    """A held-out loss within a trial would be one of weights that are put back."""
    options = ["--schedule", "climb", "--steps", 130, "--eval-every", 5]
    assert pretrain(*options, "--out", tmp_path / "run") == 0
    found = lines(tmp_path / "run")
    phases = {row["step"]: row["phase"] for row in found if "phase" in row}
    evaluated = [row["step"] for row in found if "held_out_bits_per_byte" in row]
    assert {*phases.values()} == {"trial", "control", "frozen"} and len(evaluated) > 10
    assert not any(phases[step] == "trial" for step in evaluated)
    for more in (["--optimizer", "muon+fused"], ["--record-norms"]):
        assert pretrain(*options, *more, "--out", tmp_path / "other") == 2
        assert "it puts back the parameters of FusedAdamW alone" in capsys.readouterr().err
