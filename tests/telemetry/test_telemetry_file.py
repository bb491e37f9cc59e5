"""`run.jsonl`: what a line says, who can read it, and what happens to it when processes and discs fail."""

import copy
import errno
import json
import math

import pytest
import torch
from support.telemetry import RESTLESS, optimizer, step, step_unheard

from greedylr_fused import FusedAdamW
from greedylr_fused.commands import gradient_norms
from greedylr_fused.telemetry import Recorder, recorded_run
from greedylr_fused.telemetry.recorded_run import Run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line(tmp_path):
    opt = optimizer()
    with Recorder(opt, tmp_path / "run.jsonl", run="first"):
        step(opt, 2.0)
        step(opt, 3.0)
        step(opt, 3.0, skip=True)
        step(opt, math.inf)
    first, second, third, fourth = lines(tmp_path / "run.jsonl")
    names = ["run", "step", "loss", "smoothed_loss", "best", "lr", "grad_norm", "skipped", "skipped_spikes", "event"]
    assert list(first) == names
    assert first["run"] == "first" and first["step"] == 1 and first["event"] == "raise"
    assert first["loss"] == first["smoothed_loss"] == first["best"] == 2.0
    assert first["lr"] == [0.01 / 0.8, 0.02 / 0.8] and first["grad_norm"] > 0
    assert second["lr"] == [first["lr"][0] * 0.8, first["lr"][1] * 0.8] and second["event"] == "cut"
    assert third["step"] == 3 and third["skipped"] == 1 and third["lr"] == second["lr"]
    assert third["loss"] is None and third["smoothed_loss"] is None and third["grad_norm"] is None
    assert "event" not in third
    assert fourth["step"] == 4 and fourth["skipped"] == 1 and fourth["loss"] is None and fourth["event"] == "cut"


def test_without_a_schedule(tmp_path):
    opt = optimizer(schedule=None, max_grad_norm=None)
    with Recorder(opt, str(tmp_path / "run.jsonl")):
        step(opt, 2.0)
    (line,) = lines(tmp_path / "run.jsonl")
    assert line == {
        **{"step": 1, "loss": 2.0, "smoothed_loss": 2.0, "best": None, "lr": [0.01, 0.02], "grad_norm": None},
        "skipped": 0,
        "skipped_spikes": 0,
    }


def test_norms_for_refine(tmp_path):
    opt, shown = optimizer(), []
    with Recorder(opt, tmp_path / "run.jsonl", run="fused", grad_norms=True):
        for i in range(20):
            step(opt, skip=i == 7)
            shown.append([opt.metrics().grad_norm, opt.metrics().grad_norm_l1])
    name, norms = gradient_norms.read(tmp_path / "run.jsonl")
    finite = torch.tensor(shown, dtype=torch.float64)
    finite[7] = torch.nan
    assert name == "fused" and torch.equal(norms.nan_to_num(-1), finite.nan_to_num(-1))


def test_lost_steps_have_a_line(tmp_path):
    opt = optimizer()
    recorder = Recorder(opt, tmp_path / "run.jsonl")
    step(opt)
    step_unheard(opt, 3)
    step(opt)
    with pytest.warns(RuntimeWarning, match="3 steps were lost"):
        recorder.close()
    assert lines(tmp_path / "run.jsonl")[1] == {"step": 4, "lost": 3}
    run = recorded_run.read(tmp_path / "run.jsonl")["run"]
    assert list(run.steps) == [1, 5] and run.lost == {4: 3}
    assert run.between(2, None).lost == {} and run.between(1, 5).lost == {4: 3}


def test_a_line_supersedes_those_of_its_step_and_after(tmp_path):
    """As when a run goes on from a checkpoint before where it was stopped; other runs in the file are left alone."""
    path = tmp_path / "run.jsonl"
    opt, other = optimizer(), optimizer()
    with Recorder(opt, path, run="a") as recorder, Recorder(other, path, run="b") as beside:
        for _ in range(3):
            step(opt)
        saved = copy.deepcopy(opt.state_dict())
        for _ in range(4):
            step(opt)
            step(other)
        recorder.drain()
        beside.drain()
    resumed = optimizer()
    resumed.load_state_dict(saved)
    with Recorder(resumed, path, run="a"):
        step(resumed, 7.0)
        step(resumed, 8.0)
    runs = recorded_run.read(path)
    assert list(runs["a"].steps) == [1, 2, 3, 4, 5] and list(runs["a"].loss[3:]) == [7.0, 8.0]
    assert list(runs["b"].steps) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ('{"step": 1, "lr": [1], "loss": 2}\n{"step": 2, "lr"', 1),
        ('{"step": 1, "lr": [1], "loss": 2}\n{"step": 2, "lr": [1]}', 2),  # whole, but for the end of the line
        ('{"step": 1, "l', 0),
        ("", 0),
    ],
)
def test_what_a_killed_process_has_left(tmp_path, left, kept):
    path = tmp_path / "run.jsonl"
    path.write_text(left)
    opt = optimizer()
    for _ in range(kept):
        step(opt)
    with Recorder(opt, path):
        step(opt)
    assert [line["step"] for line in lines(path)] == list(range(1, kept + 2))


def test_a_long_file_is_looked_at_from_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("greedylr_fused.telemetry.run_log._TAIL", 64)
    path = tmp_path / "run.jsonl"
    whole = "".join(f'{{"step": {i}, "lr": [1.0]}}\n' for i in range(1, 30))
    path.write_text(whole + '{"step": 30, "l')
    Recorder(optimizer(), path).close()
    assert path.read_text() == whole


def test_files_that_are_refused(tmp_path):
    other = tmp_path / "model.py"
    other.write_text("import torch")
    with pytest.raises(ValueError, match=r"expected a new file or a run.jsonl.* begins with b'i'"):
        Recorder(optimizer(), other)
    assert other.read_text() == "import torch"
    with pytest.raises(FileNotFoundError, match="its folder does not exist; create that first"):
        Recorder(optimizer(), tmp_path / "none" / "run.jsonl")


class Full:
    """A disc that takes so many bytes more."""

    def __init__(self, monkeypatch, room):
        self.room = room
        monkeypatch.setattr("greedylr_fused.telemetry.run_log._write", self._write)

    def _write(self, file, data):
        file.write(data[: self.room])
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disc(tmp_path, monkeypatch):
    """Training goes on, nothing is lost, and no line is cut in two."""
    path = tmp_path / "run.jsonl"
    opt = optimizer()
    recorder = Recorder(opt, path)
    step(opt)
    recorder.drain()
    with monkeypatch.context() as patch:
        full = Full(patch, room=300)
        for _ in range(3):
            step(opt)
        with pytest.warns(RuntimeWarning, match=r"run.jsonl was not written \(No space left.* last 3 lines are kept"):
            recorder.drain()
        assert [line["step"] for line in lines(path)] == [1]
        full.room = 10_000
        step(opt)
        recorder.drain()
        assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5]
        full.room = 0
        step(opt)
        with pytest.raises(OSError, match="No space left"):
            recorder.close()
    recorder.close()
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]


def test_reading(tmp_path):
    """The lines of the main job, too, with others between them."""
    path = tmp_path / "run.jsonl"
    rows = [
        {"run": "fused", "step": 1, "loss": None, "smoothed_loss": None, "next_lr": 0.1, "skipped": 1},
        {"run": "torch", "step": 1, "loss": 3.0, "next_lr": 0.1},
        {"run": "fused", "step": 2, "loss": 2.0, "smoothed_loss": 2.5, "next_lr": 0.2, "skipped": 1},
        {"run": "fused", "step": 2, "held_out_bits_per_byte": 2.5},
        {"run": "fused", "step": 3, "loss": 1.0, "lr": [0.3, 0.4], "skipped": 2, "event": "raise"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + '\n{"run": "fu')
    runs = recorded_run.read(path)
    assert list(runs) == ["fused", "torch"] and list(runs["torch"].lrs) == [(0.1,)]
    fused = runs["fused"]
    assert list(fused.steps) == [1, 2, 3] and fused.lrs == [(0.1,), (0.2,), (0.3, 0.4)]
    assert math.isnan(fused.loss[0]) and list(fused.smoothed_loss[1:2]) == [2.5]
    assert fused.events == ["skip", None, "skip"]
    assert fused.between(2, 2).lrs == [(0.2,)] and not fused.between(4, None).steps


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected JSON objects .*, got no line of a step"),
        ('{"step": 1, "held_out": 2}\n', "expected JSON objects .*, got no line of a step"),
        ('{"step": 1, "lr": 0.1}\noh\n{"step": 2, "lr": 0.1}\n', "line 2: expected one JSON object, got 'oh"),
        ('[1]\n{"step": 2, "lr": 0.1}\n', r"line 1: expected one JSON object, got '\[1\]"),
        ('{"step": 1.5, "lr": 0.1}\n', "line 1: expected an integer as step .*, got {'step': 1.5"),
        ('{"step": true, "lr": 0.1}\n', "line 1: expected an integer as step .*, got {'step': True"),
        ('{"step": 1, "lr": null}\n', "line 1: expected an integer as step"),
        ('{"step": 1, "lr": []}\n', "line 1: expected an integer as step"),
        ('{"step": 1, "lr": ["a"]}\n', "line 1: expected an integer as step"),
        ('{"step": 1, "lr": 0.1, "loss": "low"}\n', "line 1: expected an integer as step"),
        ('{"step": 99999999999999999999, "lr": 0.1}\n', "line 1: expected an integer as step"),
        ("\udcff\n\n{}", "line 1: expected one JSON object, got"),
    ],
)
def test_damaged_files(tmp_path, text, says):
    path = tmp_path / "run.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=says) as raised:
        recorded_run.read(path)
    assert str(path) in str(raised.value)


RATES = {
    "decisions": [(0.1, True), (0.2, True), (0.2, False), (0.1, False), (0.1, None), (0.05, False), (0.1, False)],
    "decay": [(0.1, True), (0.2, True), (0.19, True), (0.1, False)],
    "warm-up": [(0.1, True), (0.2, True), (0.3, False), (0.2, False)],
    "still": [(0.1, True), (0.1, False)],
}


@pytest.mark.parametrize("name", RATES)
def test_decisions_of_lines_that_only_say_what_was_better(name):
    """Those of the main job. An LR that follows a curve says nothing."""
    run = Run()
    for number, (lr, better) in enumerate(RATES[name], start=1):
        run.add({"step": number, "next_lr": lr, "better": better})
    run.find_decisions()
    found = [None, "raise", None, "cut", None, "cut", "reset"] if name == "decisions" else [None] * len(run.steps)
    assert run.events == found and run.tells_decisions == (name in ("decisions", "still"))


def test_the_main_jobs_decisions_are_those_of_a_recorder(tmp_path):
    opt = FusedAdamW([torch.nn.Parameter(torch.ones(2))], lr=0.01, schedule=RESTLESS)
    run = Run()
    generator = torch.Generator().manual_seed(3)
    with Recorder(opt, tmp_path / "run.jsonl"):
        for number in range(1, 200):
            step(opt, float(torch.rand((), generator=generator)) - number / 200)
            shown = opt.metrics()
            better = shown.best == shown.smoothed_loss
            run.add({"run": "fused", "step": number, "next_lr": shown.lr[0], "better": better})
    run.find_decisions()
    recorded = recorded_run.read(tmp_path / "run.jsonl")["run"]
    assert run.events[1:] == recorded.events[1:] and {"raise", "cut", None} <= set(recorded.events)
