"""The main job, with the micro size on a small text, in this process."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = {"fused": ["--optimizer", "fused"], "torch": ["--optimizer", "torch"], "compare": ["--compare"]}


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example(name)` imports a module of the example; the working directory is a temporary one."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def write_text(folder):
    path = folder / "text.txt"
    path.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(300)))
    return path


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with a text and a finished run of two steps, to be copied."""
    folder = tmp_path_factory.mktemp("two_steps")
    write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.chdir(folder)
        options = ["--size", "micro", "--threads", "1", "--data", "text.txt", "--steps", "2", "--out", "run"]
        assert importlib.import_module("pretrain").main(options) == 0
    return folder


@pytest.fixture
def pretrain(example, text):
    def run(*options, data=text):
        given = [*map(str, options)]
        new = [] if "--resume" in given else ["--size", "micro", "--threads", "1", "--data", str(data)]
        return example("pretrain").main([*new, *given])

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else None


def lines(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def assert_same_bits(a, b, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{index}]")
    else:
        assert a == b or (a != a and b != b), where


def assert_same_run(ours, theirs):
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (ours, theirs))
    for checkpoint in (a, b):
        checkpoint["config"] |= {"steps": 0}
    assert_same_bits(a, b)
    order = lambda row: (row["run"], row["step"], len(row))  # noqa: E731
    assert sorted(lines(ours), key=order) == sorted(lines(theirs), key=order)


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
    assert ours["optimizer_ms"]["steps"] == 9
    printed = capsys.readouterr().out
    assert "held-out loss (bits/byte)" in printed and "host reads per step" in printed


def test_the_loss_falls_and_moves_the_learning_rate(pretrain, tmp_path):
    assert pretrain("--steps", 60, "--out", tmp_path / "run") == 0
    rows = [row for row in lines(tmp_path / "run") if "loss" in row]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["next_lr"] > rows[0]["next_lr"]


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(pretrain, tmp_path, kind):
    options = [*RUNS[kind], "--accumulate", 2, "--save-every", 4, "--eval-every", 4, "--window", 3, "--patience", 1]
    assert pretrain(*options, "--steps", 12, "--out", tmp_path / "straight") == 0
    assert pretrain(*options, "--steps", 8, "--out", tmp_path / "resumed") == 0
    assert pretrain("--resume", tmp_path / "resumed", "--steps", 12) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("number, at", [(signal.SIGINT, 5), (signal.SIGTERM, 12)])
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
    assert f"--resume {tmp_path / 'stopped'}" in capsys.readouterr().out
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


def truncated(folder):
    data = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(data[: len(data) // 2])


def not_a_checkpoint(folder):
    (folder / "checkpoint.pt").write_bytes(b"text")


def without_keys(folder):
    torch.save({"format": 1}, folder / "checkpoint.pt")


def of_another_shape(folder):
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"size": "tiny"}}, folder / "checkpoint.pt")


def changed_text(folder):
    (folder.parent / "text.txt").write_text("another line of text\n" * 500)


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
        (changed_text, ["--resume", "run"], "the text has changed"),
        (unchanged, ["--size", "micro", "--data", "text.txt", "--out", "run"], "run is not empty"),
        (unchanged, ["--size", "micro", "--data", "text.txt", "--out", "text.txt"], "there is a file of that name"),
        (unchanged, ["--size", "micro", "--data", "missing", "--out", "other"], "no such file or folder"),
        (unchanged, ["--size", "micro", "--data", "folder", "--out", "other"], "got 0 bytes of text"),
        (unchanged, ["--size", "huge", "--out", "other"], "invalid choice"),
        (unchanged, ["--factor", "2", "--out", "other"], "GreedyLR factor"),
        (unchanged, ["--steps", "0", "--out", "other"], "allowed is 1 or more"),
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
    assert message in complaint
    assert contents(run) == before and sorted(os.listdir(tmp_path)) == names


def test_a_folder_of_text_is_read_without_its_binary_files(example, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a" * 1000)
    (folder / "b.bin").write_bytes(b"\0" * 1000)
    corpus = example("data").load_corpus(folder, context=8)
    assert (corpus.train == ord("a")).all() and corpus.train.numel() == 950 and corpus.held_out.numel() == 50


def test_overwrite_starts_anew(pretrain, tmp_path):
    out = tmp_path / "run"
    assert pretrain("--steps", 3, "--out", out) == 0
    (out / "notes.txt").write_text("mine")
    assert pretrain("--steps", 2, "--out", out, "--overwrite") == 0
    assert [row["step"] for row in lines(out) if "loss" in row] == [1, 2]
    assert (out / "notes.txt").read_text() == "mine"


def test_several_processes_are_refused(pretrain, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pretrain("--out", tmp_path / "run") == 2
    assert "without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_failed_write_leaves_the_old_file(example, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        example("checkpoint").write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("size, low, high", [("tiny", 1e6, 3e6), ("gpt2", 123e6, 125e6), ("1b", 0.9e9, 1.1e9)])
def test_sizes_have_the_parameters_their_name_says(example, size, low, high):
    with torch.device("meta"):
        model = example("model").GPT(example("config").SIZES[size].shape)
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_a_byte_is_predicted_from_earlier_ones_only(example):
    model = example("model").GPT(example("config").SIZES["micro"].shape)
    tokens = torch.randint(256, (1, 32))
    embedded = model.embedding(tokens).detach().requires_grad_()
    x = embedded
    for block in model.blocks:
        x = block(x, model.cos, model.sin)
    x[0, 10].sum().backward()
    touched = embedded.grad[0].abs().sum(-1) > 0
    assert touched[:11].all() and not touched[11:].any()


def test_help_gives_options_with_defaults():
    asked = subprocess.run(
        [sys.executable, EXAMPLES / "pretrain.py", "--help"], capture_output=True, text=True, check=True
    )
    for part in ("--compare", "--resume", "--accumulate", "(default: 1)", "exit code 2"):
        assert part in asked.stdout
