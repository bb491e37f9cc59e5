"""A checkpoint is whole or the one before: on a full disk, killed at every point of a save, damaged afterwards."""

import importlib
import io
import os
import random
import shutil
import signal
import sys

import pytest
import torch
from running import EXAMPLES, assert_same_bits
from support import ranks

POINTS = ["first write", "a write", "last write", "flush", "fsync", "rename", "after"]
CONTENT = {"numbers": torch.arange(30_000, dtype=torch.float64), "more": [torch.ones(5_000) for _ in range(4)]}


class Killer:
    """A file that counts down writes, and kills its process halfway through that at which it arrives at 0."""

    def __init__(self, file, at):
        self.file, self.left = file, at

    def write(self, data):
        self.left -= 1
        if self.left == 0:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            die()
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(path, point, writes):
    """In a process of its own."""
    sys.path.insert(0, str(EXAMPLES))
    checkpoint = importlib.import_module("checkpoint")
    at = {"first write": 1, "a write": writes // 2, "last write": writes}.get(point, 0)

    def write(file):
        torch.save(CONTENT, Killer(file, at))
        if point == "flush":
            die()

    if point in ("fsync", "rename"):
        setattr(os, {"fsync": "fsync", "rename": "replace"}[point], die)
    checkpoint.write_atomically(path, write)
    die()


@pytest.mark.parametrize("point", POINTS)
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new(tmp_path, point):
    path = tmp_path / "checkpoint.pt"
    old = {"old": torch.ones(3)}
    torch.save(old, path)

    counter = Killer(io.BytesIO(), at=0)
    torch.save(CONTENT, counter)
    process = ranks._server().Process(target=save_and_die, args=(path, point, -counter.left))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert_same_bits(torch.load(path, weights_only=True), CONTENT if point == "after" else old)


@pytest.mark.parametrize(
    "name, message",
    [
        ("checkpoint.pt", "checkpoint.pt: not written: No space left on device; the one before stays"),
        ("run.jsonl", "run.jsonl: not written: No space left on device; what was saved before is whole"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    pretrain, example, monkeypatch, tmp_path, capsys, name, message
):
    """A device that is always full stands where the file is written."""
    out = tmp_path / "run"
    assert pretrain("--steps", 2, "--out", out) == 0
    before = (out / "checkpoint.pt").read_bytes()
    place = {"checkpoint.pt": example("checkpoint").partial_of(out / name), "run.jsonl": out / name}[name]
    train = example("pretrain").train

    def train_on_a_full_disk(*args):
        place.unlink(missing_ok=True)
        place.symlink_to("/dev/full")
        return train(*args)

    with monkeypatch.context() as patch:
        patch.setattr(example("pretrain"), "train", train_on_a_full_disk)
        assert pretrain("--resume", out, "--steps", 4) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f"{message}\n")
    assert not list(out.glob(".*")), "nothing half-written is left"
    assert (out / "checkpoint.pt").read_bytes() == before
    place.unlink(missing_ok=True)
    assert pretrain("--resume", out, "--steps", 4) == 0


def test_damage_is_found_wherever_it_is(example, two_steps, tmp_path):
    """One bit, anywhere in the file: an error that says so, or nothing that matters."""
    shutil.copytree(two_steps / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    draw, found = random.Random(20250711), 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_same_bits(example("checkpoint").load(tmp_path / "run"), content)
        except example("errors").UsageError as error:
            assert "damaged or not a checkpoint" in str(error)
            found += 1
    assert found > 80
    for _ in range(20):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(example("errors").UsageError, match="damaged or not a checkpoint"):
            example("checkpoint").load(tmp_path / "run")
