"""Runs by --schedule: both optimizers follow it, it survives a stop, and the norms of one run make that of the next."""

import copy
import json
import math
import shutil
import signal

import pytest
import torch
from running import assert_same_run, lines

from greedylr_fused import FusedAdamW, ReduceOnPlateau, Refined
from greedylr_fused.__main__ import main

LR = 3e-3  # of the micro size


@pytest.fixture
def undrawn(example, monkeypatch):
    """Pictures take longer than these runs."""
    monkeypatch.setattr(example("report"), "draw", lambda *_: None)


def rates(folder, run="fused"):
    """The LR after each step."""
    return [row["next_lr"] for row in lines(folder) if row["run"] == run and "loss" in row]


def config(example, **given):
    return example("config").new_config({"size": "micro", "device": "cpu", "steps": 12} | given)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "greedy", "patience": 1, "window": 2},
        {"schedule": "constant", "warmup_steps": 5},
        {"schedule": "linear", "warmup_steps": 2},
        {"schedule": "cosine", "warmup_steps": 3, "min_lr_ratio": 0.1},
        {"schedule": "wsd", "warmup_steps": 1, "decay_steps": 7, "min_lr_ratio": 0.2},
        {"schedule": "plateau", "factor": 0.6, "patience": 1, "window": 2, "min_lr_ratio": 0.5},
    ],
    ids=lambda options: options["schedule"],
)
def test_the_baseline_has_the_same_learning_rates(example, options):
    """Those of torch's and transformers' own schedulers, to the bit, and across a save of each."""
    pytest.importorskip("transformers")
    made = config(example, compare=True, **options)

    def build(kind):
        param = torch.nn.Parameter(torch.ones(4))
        return param, kind([{"params": [param]}], LR, (0.9, 0.95), 0.1, schedule=made.lr_schedule, max_grad_norm=1.0)

    kinds = (FusedAdamW, example("trainer").UnfusedAdamW)
    pairs = [build(kind) for kind in kinds]
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, math.nan, 2.8, 2.9, 1.0, 0.9, 3.1, 3.2]
    seen = []
    for step, loss in enumerate(losses):
        if step == 6:
            fresh = [build(kind) for kind in kinds]
            for (_, old), (_, new) in zip(pairs, fresh, strict=True):
                new.load_state_dict(old.state_dict())
            pairs = fresh
        for param, opt in pairs:
            param.grad = torch.full((4,), 0.1)
            opt.observe(torch.tensor(loss))
            opt.step()
        ours, theirs = (opt.metrics() for _, opt in pairs)
        assert ours.lr == theirs.lr, step
        if made.loss_driven:
            assert (ours.smoothed_loss == theirs.smoothed_loss or math.isnan(loss)) and ours.best == theirs.best, step
        seen.append(ours.lr[0])
    assert len(set(seen)) > 2, "it moves"
    if isinstance(made.lr_schedule, ReduceOnPlateau):
        assert seen[-1] == 0.5 * LR, "down to the floor"


def test_names_are_those_of_the_schedule(example):
    label, names = example("lr_schedules").label, example("lr_schedules").NAMES
    labels = {name: label(config(example, schedule=name, steps=200)) for name in names}
    assert labels["greedy"] == "GreedyLR" and labels["greedy+wsd"] == "GreedyLR on WSD"
    assert labels["climb"] == "Climb on Linear"
    assert labels["plateau"] == "ReduceOnPlateau" and len(set(labels.values())) == len(names)
    folder = example("folders").default_name
    assert folder(config(example)) == "micro-fused"
    assert folder(config(example, schedule="greedy+cosine", optimizer="fused")) == "micro-fused-greedy-cosine"


def test_a_stopped_run_keeps_its_curve_and_a_longer_one_says_that_it_changes(
    pretrain, example, undrawn, monkeypatch, tmp_path, capsys
):
    options = ["--compare", "--schedule", "cosine", "--warmup-steps", 2, "--window", 3, "--steps", 6]
    assert pretrain(*options, "--out", tmp_path / "straight") == 0
    printed = capsys.readouterr().out
    assert "compare, Cosine; 6 steps" in printed and "the LR traces are equal, bit for bit" in printed
    trainer = example("trainer").Trainer
    step, calls = trainer.step, []

    def step_and_signal(self):
        calls.append(self.name)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", step_and_signal)
        assert pretrain(*options, "--out", tmp_path / "stopped") == 130
    assert pretrain("--resume", tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    smoothed = [row["smoothed_loss"] for row in lines(tmp_path / "stopped") if row["run"] == "fused" and "loss" in row]
    losses = [row["loss"] for row in lines(tmp_path / "stopped") if row["run"] == "fused" and "loss" in row]
    assert smoothed == [math.fsum(losses[max(0, t - 2) : t + 1]) / min(t + 1, 3) for t in range(6)]
    assert "is now one of" not in capsys.readouterr().out

    before = {}  # the LR that the first step of each goes on with
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", lambda self: before.setdefault(self.name, self.metrics.lr) and step(self))
        assert pretrain("--resume", tmp_path / "stopped", "--steps", 9) == 0
    curves = [config(example, schedule="cosine", warmup_steps=2, steps=n).lr_schedule.curve() for n in (6, 9)]
    said = f"Cosine is now one of 9 steps, not 6: after step 6 the LR is at {curves[1][6]:.3g} of its peak, not 0"
    assert said in capsys.readouterr().out
    for run in ("fused", "torch"):
        assert before[run] == (LR * curves[1][6],) * 2
        assert rates(tmp_path / "stopped", run) == [LR * share for share in [*curves[0][1:7], *curves[1][7:10]]]


def test_the_norms_of_a_run_make_the_schedule_of_the_next(pretrain, undrawn, tmp_path, capsys):
    """Also of one that was interrupted and went on from a checkpoint before that."""
    options = ("--schedule", "linear", "--record-norms", "--out")
    assert pretrain(*options, tmp_path / "run", "--steps", 8) == 0
    assert pretrain(*options, tmp_path / "stopped", "--steps", 5) == 0
    with (tmp_path / "stopped" / "norms.jsonl").open("a") as file:
        file.write('{"run": "fused", "step": 6, "grad_norm_l1": 9.0}\n')  # of a step after the checkpoint
    assert pretrain("--resume", tmp_path / "stopped", "--steps", 8) == 0
    for name in ("run", "stopped"):
        written = [json.loads(line) for line in (tmp_path / name / "norms.jsonl").read_text().splitlines()]
        assert [row["step"] for row in written] == list(range(1, 9)) and min(row["grad_norm_l1"] for row in written) > 0
        main(["refine", str(tmp_path / name / "norms.jsonl"), "-o", str(tmp_path / "refined.json")])
    main(["refine", str(tmp_path / "run" / "norms.jsonl"), "-o", str(tmp_path / "refined.json")])
    values = Refined.load(tmp_path / "refined.json").values
    capsys.readouterr()

    assert pretrain("--schedule", "refined.json", "--steps", 8, "--out", tmp_path / "refined") == 0
    printed = capsys.readouterr().out
    assert "fused, Refined; 8 steps" in printed and "stretched" not in printed
    assert rates(tmp_path / "refined") == [LR * share for share in [*values[1:], values[-1]]]

    (tmp_path / "refined.json").unlink()  # the checkpoint has it
    assert pretrain("--resume", tmp_path / "refined", "--steps", 15) == 0
    assert "Refined is now one of 15 steps, not 8" in capsys.readouterr().out
    assert len(rates(tmp_path / "refined")) == 15 and rates(tmp_path / "refined")[-1] == 0
    assert sorted(rates(tmp_path / "refined")[8:], reverse=True) == rates(tmp_path / "refined")[8:]


def test_a_refined_schedule_of_another_length_is_stretched(example, tmp_path):
    Refined([0.5, 1.0, 0.0], warmup_steps=1, min_lr_ratio=0.5).save(tmp_path / "short.json")
    made = config(example, schedule="short.json", steps=6)
    assert list(made.lr_schedule.curve()) == [0.0, 0.75, 0.875, 1.0, 0.75, 0.5]
    remark = example("lr_schedules").remark
    assert remark(made, None, 0) == "short.json: made for 4 steps, and stretched over the 6 of this run"
    assert remark(config(example, schedule="short.json", steps=4), None, 0) is None
    assert list(config(example, schedule="short.json", steps=3, warmup_steps=0).lr_schedule.values) == [0.5, 1.0, 0.0]


def test_checkpoints_from_before_there_was_a_choice_go_on(pretrain, undrawn, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    for name in ("schedule", "warmup_steps", "decay_steps", "min_lr_ratio", "values", "record_norms"):
        del content["config"][name]
    torch.save(content, path)
    assert pretrain("--resume", tmp_path / "run", "--steps", 3) == 0
    assert rates(tmp_path / "run") == [LR] * 3


def test_a_baseline_from_before_there_was_a_choice_goes_on(example):
    made = config(example, optimizer="torch", patience=0, window=2)

    def build():
        param = torch.nn.Parameter(torch.ones(4))
        param.grad = torch.ones(4)
        kind = example("unfused").UnfusedAdamW
        return kind([{"params": [param]}], LR, (0.9, 0.95), 0.1, schedule=made.lr_schedule, max_grad_norm=1.0)

    opt, resumed = build(), build()
    for loss in (3.0, 2.0, 4.0):
        opt.observe(torch.tensor(loss))
        opt.step()
    state = copy.deepcopy(opt.state_dict())
    state["greedy"] = state.pop("schedule")
    del state["greedy"]["forget_left"]  # there was none
    resumed.load_state_dict(state)
    for kept in (opt, resumed):
        kept.observe(torch.tensor(0.5))
        kept.step()
    assert opt.metrics().lr == resumed.metrics().lr != (LR,) and opt.metrics().best == resumed.metrics().best
