"""Options and folders that cannot work: one line, exit code 2, nothing written. The help."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from running import contents
from support.paths import ROOT


def truncated(folder):
    data = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(data[: len(data) // 2])


def not_a_checkpoint(folder):
    (folder / "checkpoint.pt").write_bytes(b"text")


def without_keys(folder):
    torch.save({"format": 2}, folder / "checkpoint.pt")


def of_another_shape(folder):
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"size": "tiny"}}, folder / "checkpoint.pt")


def changed_text(folder):
    (folder.parent / "text.txt").write_text("another line of text\n" * 500)


def not_text(folder):
    (folder.parent / "text.txt").write_bytes(b"\0" * 1000)


def of_the_default_corpus(folder):
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"data": None}}, folder / "checkpoint.pt")


def unchanged(folder):
    pass


@pytest.mark.parametrize(
    "damage, options, message",
    [
        (unchanged, ["--resume", "run", "--size", "tiny"], "--size tiny: the checkpoint is of a run with micro"),
        (unchanged, ["--resume", "run", "--optimizer", "torch"], "--optimizer torch: the checkpoint is of a run with"),
        (unchanged, ["--resume", "run", "--out", "other"], "leave out --out"),
        (unchanged, ["--resume", "other"], "no such folder"),
        (truncated, ["--resume", "run"], "damaged or not a checkpoint"),
        (not_a_checkpoint, ["--resume", "run"], "damaged or not a checkpoint"),
        (without_keys, ["--resume", "run"], "not a checkpoint of this program"),
        (of_another_shape, ["--resume", "run"], "of another model"),
        (changed_text, ["--resume", "run", "--steps", "3"], "the text has changed"),
        (unchanged, ["--size", "micro", "--data", "text.txt", "--out", "run"], "run is not empty"),
        (unchanged, ["--size", "micro", "--data", "text.txt", "--out", "text.txt"], "there is a file of that name"),
        (unchanged, ["--size", "micro", "--data", "missing", "--out", "other"], "no such file or folder"),
        (
            unchanged,
            ["--size", "micro", "--data", "folder", "--out", "other"],
            "corpus folder: expected at least ... bytes of text, got 0",
        ),
        (not_text, ["--size", "micro", "--data", "text.txt", "--out", "other"], "(1 files with zero bytes in them"),
        (unchanged, ["--size", "huge", "--out", "other"], "invalid choice"),
        (unchanged, ["--factor", "2", "--out", "other"], "GreedyLR factor"),
        (unchanged, ["--steps", "0", "--out", "other"], "a whole number, 1 or more"),
        (unchanged, ["--weight-decay", "-1", "--out", "other"], "expected 0 or a positive number"),
        (unchanged, ["--window", "100000000000", "--out", "other"], "from 1 to 1,000,000"),
        (
            unchanged,
            ["--threads", "10000", "--out", "other"],
            "--threads: expected a whole number from 1 to ..., got 10000",
        ),
        (unchanged, ["--patience", "-1", "--out", "other"], "GreedyLR patience"),
        (unchanged, ["--seed", "-1", "--out", "other"], "--seed: expected a whole number from 0 to ..., got -1"),
        (unchanged, ["--lr", "0", "--out", "other"], "expected a positive number"),
        (unchanged, ["--lr", "nan", "--out", "other"], "expected a positive number"),
        (
            unchanged,
            ["--lr", "1e308", "--out", "other"],
            "GreedyLR max_lr: expected a finite learning rate >= 0, got inf",
        ),
        (unchanged, ["--compare", "--optimizer", "torch", "--out", "other"], "leave out --optimizer"),
        (
            unchanged,
            ["--schedule", "cosin", "--out", "other"],
            "expected one of greedy, constant, linear..., got cosin",
        ),
        (unchanged, ["--schedule", "x.json", "--out", "other"], "--schedule x.json: No such file or directory"),
        (unchanged, ["--schedule", "run/config.json", "--out", "other"], "expected a file that Refined.save()"),
        (unchanged, ["--warmup-steps", "5", "--out", "other"], "--schedule greedy has no use for it; leave it out;"),
        (unchanged, ["--schedule", "cosine", "--patience", "5"], "--schedule cosine has no use for it"),
        (
            unchanged,
            ["--schedule", "linear", "--warmup-steps", "500"],
            "Linear warmup_steps: expected at most ..., got 500",
        ),
        (unchanged, ["--schedule", "wsd", "--decay-steps", "500"], "WSD decay_steps: expected at most ..., got 500"),
        (unchanged, ["--schedule", "wsd", "--min-lr-ratio", "2"], "--min-lr-ratio: expected a ratio, 0 to 1, got 2"),
        (unchanged, ["--compare", "--schedule", "greedy+wsd"], "there is none for --schedule greedy+wsd; write one of"),
        (unchanged, ["--compare", "--schedule", "linear", "--min-lr-ratio", "0.1"], "there is none for a linear"),
        (unchanged, ["--compare", "--schedule", "plateau", "--warmup-steps", "1"], "there is none for plateau with"),
        (unchanged, ["--optimizer", "torch", "--record-norms"], "leave out --record-norms"),
        (unchanged, ["--optimizer", "muon+fused", "--record-norms"], "FusedAdamW alone records norms"),
        (
            unchanged,
            ["--schedule", "autolrs", "--steps", "79"],
            "--steps: expected 80 or more, a stage of --trial-steps 4",
        ),
        (
            unchanged,
            ["--schedule", "autolrs", "--trial-steps", "3"],
            "--trial-steps: expected a whole number, 4 or more",
        ),
        (unchanged, ["--schedule", "autolrs", "--warmup-steps", "5"], "--schedule autolrs has no use for it; leave it"),
        (unchanged, ["--schedule", "autolrs", "--compare"], "--schedule autolrs: it drives FusedAdamW alone"),
        (unchanged, ["--schedule", "autolrs", "--record-norms"], "leave out --optimizer, --compare and --record-norms"),
        (unchanged, ["--trial-steps", "5"], "--trial-steps: --schedule greedy has no use for it; leave it out"),
        (unchanged, ["--resume", "run", "--schedule", "cosine"], "the checkpoint is of a run with greedy; leave"),
        (unchanged, ["--resume", "run", "--compare"], "--compare: the checkpoint is of a run with fused"),
        (unchanged, ["--resume", "run"], "already at step 2 of 2; raise --steps"),
        (unchanged, ["--resume", "run", "--steps", "1"], "already at step 2 of 1; raise --steps"),
        (
            of_the_default_corpus,
            ["--resume", "run", "--data", "x"],
            "--data x: the checkpoint is of a run with the default",
        ),
        (unchanged, ["--fsdp", "--ddp", "--out", "other"], "--ddp: not allowed with argument --fsdp"),
        (unchanged, ["--nonsense"], "unrecognized"),
    ],
)
def test_what_cannot_work_is_one_line_and_touches_nothing(
    example, two_steps, tmp_path, capsys, damage, options, message
):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    (tmp_path / "folder").mkdir()
    damage(run)
    before, names = contents(run), sorted(os.listdir(tmp_path))
    assert example("pretrain").main(options) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("pretrain: ") and complaint.count("\n") == 1
    assert re.search(".*".join(map(re.escape, message.split("..."))), complaint)
    assert contents(run) == before and sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("engine", ["--fsdp", "--ddp"])
def test_an_engine_without_torchrun_is_refused(pretrain, tmp_path, capsys, engine):
    assert pretrain("--out", tmp_path / "run", engine) == 2
    assert f"torchrun --nproc-per-node 2 examples/pretrain.py {engine}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_an_optimizer_refuses_is_one_line(pretrain, example, monkeypatch, tmp_path, capsys):
    def refuse(*args, **options):
        raise ValueError("betas: got 2")

    monkeypatch.setattr(example("trainer"), "FusedAdamW", refuse)
    assert pretrain("--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == "pretrain: betas: got 2\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, runs",
    [
        ("", "--compare --out runs/train --overwrite"),
        ("--steps 5", "--compare --out runs/train --overwrite --steps 5"),
        ("--resume runs/train", "--resume runs/train"),
        ("--optimizer torch", "--out runs/train --overwrite --optimizer torch"),
        ("--out mine", "--compare --out mine"),
    ],
)
def test_make_train_passes_what_fits_the_users_options(tmp_path, given, runs):
    assert make_train(tmp_path, f"ARGS={given}") == runs.split()


@pytest.mark.parametrize(("files", "overwrites"), [((), True), (("checkpoint.pt",), False), (("run.jsonl",), True)])
def test_make_train_replaces_no_run_that_was_stopped(tmp_path, files, overwrites):
    (tmp_path / "runs/train").mkdir(parents=True)
    for name in files:
        (tmp_path / "runs/train" / name).touch()
    assert ("--overwrite" in make_train(tmp_path)) == overwrites
    (tmp_path / "runs/train/summary.json").touch()
    assert "--overwrite" in make_train(tmp_path)


def make_train(folder, *given):
    """What `make train` would give the example in that folder."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    built = (f"--assume-old={name}" for name in (".venv/.built", ".venv/.installed"))
    make = ["make", "--dry-run", "--no-print-directory", "--file", ROOT / "Makefile", *built, "train", *given]
    asked = subprocess.run(make, cwd=folder, env=outside, capture_output=True, text=True, check=True)
    return asked.stdout.splitlines()[-1].split("examples/pretrain.py")[1].split()


def test_help_gives_options_with_defaults():
    asked = subprocess.run(
        [sys.executable, ROOT / "examples" / "pretrain.py", "--help"], capture_output=True, text=True, check=True
    )
    for part in ("--compare", "--resume", "--accumulate", "(default: 1)", "exit code 2", "0.1 and 4 times --lr"):
        assert part in " ".join(asked.stdout.split())
