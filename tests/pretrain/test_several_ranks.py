"""The main job on several ranks: the results of one process, one checkpoint for all engines, ends that all agree on."""

import json
import resource
import signal
import zipfile

import pytest
import torch
from launching import launch
from running import assert_same_run, contents, lines
from striking import Moment, count_calls, keep_calls

OPTIONS = ["--window", 3, "--patience", 1, "--out", "run"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ranks").mkdir()
    return tmp_path / "ranks"


@pytest.fixture
def start(text):
    """`start(folder, *options)` launches a new run."""
    return lambda folder, *options, **rest: launch(
        folder, "--size", "micro", "--threads", 1, "--data", text, *OPTIONS, *options, **rest
    )


def losses(folder):
    return torch.tensor([row["loss"] for row in lines(folder) if "loss" in row], dtype=torch.float64)


def held_out(folder):
    return json.loads((folder / "summary.json").read_text())["runs"]["fused"]["held_out_bits_per_byte"]


def told_once(outcome, message):
    """One line, from one rank, and no traceback from any."""
    assert outcome.err[0].startswith("pretrain: ") and outcome.err[0].count("\n") == 1, outcome.err[0]
    assert message in outcome.err[0]
    assert outcome.err[1:] == [""] * (len(outcome.err) - 1)


@pytest.mark.slow
def test_a_run_goes_on_with_another_engine_and_ends_as_in_one_process(pretrain, start, folder, tmp_path):
    """Within rounding, whose measure is a run of one process that adds the same losses up in another order: in one
    micro-batch of twelve windows instead of two of six.
    """
    options = ["--window", 3, "--patience", 1, "--eval-every", 4, "--steps", 12]
    assert pretrain(*options, "--batch", 6, "--accumulate", 2, "--out", "alone") == 0
    assert pretrain(*options, "--batch", 12, "--out", "reordered") == 0
    first = start(folder, "--fsdp", "--batch", 6, "--accumulate", 2, "--eval-every", 4, "--steps", 4)
    assert first.codes == [0, 0], first.err
    assert "fsdp over 2 ranks" in first.out[0] and first.out[1] == "" and first.err == ["", ""]
    second = launch(folder, "--ddp", "--resume", "run", "--steps", 8, world=3)
    assert second.codes == [0, 0, 0], second.err
    assert pretrain("--resume", folder / "run", "--steps", 12) == 0

    alone, others = losses(tmp_path / "alone"), losses(folder / "run")
    rounding = (losses(tmp_path / "reordered") - alone).abs().max().item()
    assert 0 < rounding < 1e-4
    assert (others - alone).abs().max() <= 2 * rounding
    ours, theirs = (
        [row["next_lr"] for row in lines(path) if "loss" in row] for path in (folder / "run", tmp_path / "alone")
    )
    assert ours == theirs and len(set(ours)) > 1, "every decision fell the same way"
    assert held_out(folder / "run") == pytest.approx(held_out(tmp_path / "alone"), abs=2 * rounding)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_ends_all(start, folder, tmp_path):
    straight, stopped = tmp_path / "straight", folder
    straight.mkdir()
    assert start(straight, "--fsdp", "--steps", 6, "--accumulate", 2, before=count_calls).codes == [0, 0]
    keep_calls(straight, stopped)
    moment = Moment(rank=1, phase="step", number=4, share=0.5, by=signal.SIGTERM)
    outcome = start(stopped, "--fsdp", "--steps", 6, "--accumulate", 2, moment=moment)
    assert outcome.codes == [128 + signal.SIGTERM] * 2
    assert outcome.err == ["", ""] and outcome.out[1] == ""
    assert "torchrun --nproc-per-node 2" in outcome.out[0] and "--fsdp --resume run" in outcome.out[0]
    saved = torch.load(stopped / "run" / "checkpoint.pt", weights_only=True)
    assert saved["trainers"]["fused"]["steps"] == 4 and len(saved["random"]) == 2
    assert launch(stopped, "--fsdp", "--resume", "run").codes == [0, 0]
    assert_same_run(straight / "run", stopped / "run")


def unreadable_on_one(rank):
    if rank == 1:
        zipfile.ZipFile.testzip = lambda archive: archive.namelist()[0]


def small_disk(rank):
    """No file may grow beyond this: a write fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_what_fails_on_one_rank_is_said_once_and_ends_all(start, folder):
    assert start(folder, "--ddp", "--steps", 2).codes == [0, 0]
    run = folder / "run"
    before = contents(run)
    outcome = launch(folder, "--fsdp", "--resume", "run", "--steps", 4, before=unreadable_on_one)
    assert outcome.codes == [2, 2]
    told_once(outcome, "rank 1: run/checkpoint.pt: damaged or not a checkpoint (wrong checksum of")
    assert contents(run) == before

    outcome = launch(folder, "--fsdp", "--resume", "run", "--steps", 4, before=small_disk)
    assert outcome.codes == [1, 1]
    told_once(outcome, "run/checkpoint.pt: not written: File too large; the one before stays")
    assert (run / "checkpoint.pt").read_bytes() == before["checkpoint.pt"]
    assert contents(run).keys() == before.keys() - {"summary.json"}
    assert launch(folder, "--fsdp", "--resume", "run", "--steps", 4).codes == [0, 0]
    assert len(losses(run)) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ddp", "--batch", 3], "--batch: expected a multiple of 2, the number of ranks, got 3 windows"),
        (
            ["--fsdp", "--compare"],
            "--compare: the baseline decides from the loss of its own rank",
        ),
        ([], "started by torchrun, which needs to know how the ranks share the model: add --fsdp (parameters"),
    ],
)
def test_what_several_ranks_cannot_do_is_refused_before_anything_is_written(start, folder, options, message):
    outcome = start(folder, *options)
    assert outcome.codes == [2, 2]
    told_once(outcome, message)
    assert not (folder / "run").exists()


def test_a_job_started_again_does_not_go_on_with_a_run_that_is_not_its_own(start, folder, pretrain):
    assert pretrain("--steps", 2, "--out", folder / "run") == 0
    before = contents(folder / "run")
    outcome = start(folder, "--ddp", "--steps", 4, restarts=1)
    assert outcome.codes == [2, 2] and outcome.starts == 2
    told_once(outcome, "output folder run is not empty")
    assert contents(folder / "run") == before
