"""A rank dies at some moment; torchrun starts all again, and the run ends with the bits of one that nothing befell."""

import importlib
import random

import pytest
from launching import launch
from running import assert_same_run, contents, lines, write_text
from striking import Moment, count_calls, keep_calls

STEPS, SAVE_EVERY, SAVES = 6, 2, 3
OPTIONS = ["--size", "micro", "--threads", "1", "--steps", STEPS, "--save-every", SAVE_EVERY]
OPTIONS += ["--eval-every", 3, "--window", 3, "--patience", 1, "--data", "text.txt", "--out", "run"]


def moments():
    """Ten, drawn with a seed: under both engines, in steps and in saves. The first four have each of these once."""
    draw = random.Random(20250711)
    for index in range(10):
        phase = ("step", "save")[index // 2 % 2]
        number = draw.randint(1, {"step": STEPS, "save": SAVES}[phase])
        moment = Moment(draw.randrange(2), phase, number, draw.random())
        name = f"{phase} {number} at {moment.share:.0%} on rank {moment.rank}"
        marks = () if index < 4 else pytest.mark.exhaustive
        yield pytest.param(("ddp", "fsdp")[index % 2], moment, id=f"{('ddp', 'fsdp')[index % 2]}: {name}", marks=marks)


def prepared(folder):
    folder.mkdir()
    write_text(folder)
    return folder


def without_picture(rank):
    """Which takes as long as all the rest."""
    importlib.import_module("report").draw = lambda *args: None


def counting_calls(rank):
    without_picture(rank)
    count_calls(rank)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(engine)` is the folder of a run that nothing befell."""
    folders = {}

    def run(engine):
        if engine not in folders:
            folders[engine] = prepared(tmp_path_factory.mktemp(engine) / "straight")
            assert launch(folders[engine], f"--{engine}", *OPTIONS, before=counting_calls).codes == [0, 0]
        return folders[engine]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("engine, moment", list(moments()))
def test_a_killed_rank_changes_nothing(undisturbed, tmp_path, engine, moment):
    straight, folder = undisturbed(engine), prepared(tmp_path / "killed")
    keep_calls(straight, folder)
    outcome = launch(folder, f"--{engine}", *OPTIONS, restarts=1, before=without_picture, moment=moment)
    assert outcome.codes == [0, 0] and outcome.starts == 2, outcome
    assert_same_run(straight / "run", folder / "run")
    assert contents(folder / "run").keys() == contents(straight / "run").keys(), "nothing is left over"
    assert [row["step"] for row in lines(folder / "run") if "loss" in row] == list(range(1, STEPS + 1))
