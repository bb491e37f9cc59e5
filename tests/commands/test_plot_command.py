"""`python -m greedylr_fused plot`: what is in the picture, and what is said of a file that cannot be drawn."""

import json
import math
import sys

import pytest
import torch
from support.telemetry import optimizer, step

from greedylr_fused.commands.plot import averaged, main, thinned
from greedylr_fused.telemetry import Recorder


@pytest.fixture
def figures(monkeypatch):
    """What was drawn, in place of being closed."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    pyplot.close("all")


def rows(path, count, run=None, **more):
    """Lines of a run with every kind of event."""
    kinds = [None, "raise", None, "cut", None, "reset"]
    with path.open("a") as file:
        for number in range(1, count + 1):
            row = {"step": number, "loss": 3.0 + (-1) ** number, "smoothed_loss": 3.0, "lr": [0.1 / number]} | more
            row |= {"skipped": number // 7}
            if number % 7 == 0:
                row |= {"loss": None, "smoothed_loss": None}
            elif kinds[number % 6]:
                row["event"] = kinds[number % 6]
            file.write(json.dumps(row if run is None else {"run": run} | row) + "\n")
    return path


def shown(axes):
    """The lines in a picture by their names, without the number of marks: x and y."""
    return {line.get_label().split(" (")[0]: line.get_xydata().tolist() for line in axes.get_lines()}


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("python -m greedylr_fused plot: ")
    return message


def test_decisions_of_a_search_are_told_and_marked(tmp_path, capsys, figures):
    path = tmp_path / "run.jsonl"
    events = [None, "try", "back", "try", "raise", "freeze"]
    lines = ({"step": i + 1, "loss": 1.0, "lr": [0.1 * i], "event": event} for i, event in enumerate(events))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(path)])
    assert "1 raise, 0 cuts, 0 resets, 2 tries, 1 back, 1 freeze, 0 skipped" in capsys.readouterr().out
    marks = shown(figures[0].axes[1])
    assert [x for x, _ in marks["try"]] == [2, 4] and [x for x, _ in marks["freeze"]] == [6]


def test_a_picture_of_a_record(tmp_path, capsys, figures):
    opt = optimizer()
    losses = [5.0, 4.0, 4.5, 3.0, 6.0]
    with Recorder(opt, tmp_path / "run.jsonl"):
        for i, loss in enumerate(losses):
            step(opt, loss, skip=i == 2)
    main([str(tmp_path / "run.jsonl")])
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "run: steps 1 to 5; 3 raises, 1 cut, 0 resets, 1 skipped" in told and str(tmp_path / "run.png") in told
    upper, lower = figures[0].axes
    assert shown(upper)["loss"] == [[1, 5.0], [2, 4.0], [4, 3.0], [5, 6.0]] and "smoothed" not in shown(upper)
    assert [x for x, _ in shown(upper)["skipped"]] == [3]
    lrs = [0.01 / 0.8, 0.01 / 0.8**2, 0.01 / 0.8**2, 0.01 / 0.8**3, 0.01 / 0.8**2]
    assert shown(lower)["LR 0"] == [[i + 1, pytest.approx(lr)] for i, lr in enumerate(lrs)]
    assert shown(lower)["raise"] == [shown(lower)["LR 0"][i] for i in (0, 1, 3)]
    assert shown(lower)["cut"] == [shown(lower)["LR 0"][4]]
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["LR 0", "LR 1", "raise (3)", "cut (1)"]


def test_marks_have_forms_of_their_own(tmp_path, figures):
    main([str(rows(tmp_path / "run.jsonl", 40))])
    upper, lower = figures[0].axes
    marks = {line.get_label().split(" (")[0]: line for axes in (upper, lower) for line in axes.get_lines()}
    forms = {marks[name].get_marker() for name in ("raise", "cut", "reset", "skipped")}
    colors = {marks[name].get_color() for name in ("raise", "cut", "reset", "skipped")}
    assert len(forms) == len(colors) == 4
    assert marks["loss"].get_alpha() < 0.5 and marks["smoothed"].get_alpha() is None
    assert upper.get_shared_x_axes().joined(upper, lower)


def test_a_part_of_a_run(tmp_path, capsys, figures):
    path = rows(tmp_path / "run.jsonl", 100)
    main([str(path), "-o", str(tmp_path / "part.png"), "--from", "40", "--to", "60", "--log-lr"])
    assert "steps 40 to 60" in capsys.readouterr().out
    upper, lower = figures[0].axes
    assert lower.get_yscale() == "log" and (tmp_path / "part.png").exists()
    every = [x for axes in (upper, lower) for line in shown(axes).values() for x, _ in line]
    assert min(every) == 40 and max(every) == 60
    says = "expected --from and --to that enclose some of 1 to 100, got no step from 101 to the last"
    assert says in refused(capsys, path, "--from", 101)


def test_several_runs(tmp_path, capsys, figures):
    path = rows(rows(tmp_path / "run.jsonl", 30, run="a"), 20, run="b")
    main([str(path)])
    main([str(path), "--run", "b"])
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told if "steps" in line] == ["a", "b", "b"]
    both, one = figures
    legend = [text.get_text() for text in both.axes[0].get_legend().get_texts()]
    assert legend == ["a", "skipped", "b"]
    colors = {line.get_color() for line in both.axes[0].get_lines()}
    assert len(colors) == 2, "one for each run, marks included"
    assert len(shown(one.axes[0])["smoothed"]) == 18
    assert f"--run: expected one of a, b in {path}, got 'c'" in refused(capsys, path, "--run", "c")


def test_the_main_jobs_lines(tmp_path, capsys, figures):
    path = tmp_path / "run.jsonl"
    with path.open("w") as file:
        for number, (lr, better) in enumerate([(0.1, True), (0.2, True), (0.1, False)], start=1):
            row = {"run": "fused", "step": number, "loss": 2.0, "smoothed_loss": 2.5, "better": better, "next_lr": lr}
            file.write(json.dumps(row) + "\n")
        file.write('{"run": "fused", "step": 3, "held_out_bits_per_byte": 2.5}\n{"run": "fu')
    main([str(path)])
    assert "fused: steps 1 to 3; 1 raise, 1 cut, 0 resets, 0 skipped" in capsys.readouterr().out
    assert shown(figures[0].axes[1])["raise"] == [[2, 0.2]]
    with path.open("w") as file:
        for number in (1, 2, 3):
            file.write(json.dumps({"step": number, "loss": 2.0, "better": True, "next_lr": 0.1 / number}) + "\n")
    main([str(path)])
    assert "what was decided is not in the file, 0 skipped" in capsys.readouterr().out


def test_lost_steps_are_a_band(tmp_path, capsys, figures):
    path = rows(tmp_path / "run.jsonl", 10)
    with path.open("a") as file:
        file.write('{"step": 15, "lost": 5}\n{"step": 16, "lr": [0.1], "loss": 1.0}\n')
    main([str(path)])
    assert "5 without a line" in capsys.readouterr().out
    for axes in figures[0].axes:
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == (10.5, 5.0)


def test_steps_that_a_killed_process_did_not_write_are_a_band(tmp_path, capsys, figures):
    path = rows(tmp_path / "run.jsonl", 10)
    with path.open("a") as file:
        for step in (14, 15):
            file.write(json.dumps({"step": step, "lr": [0.1], "loss": 1.0}) + "\n")
    main([str(path)])
    assert "3 without a line" in capsys.readouterr().out
    (band,) = figures[0].axes[0].patches
    assert (band.get_x(), band.get_width()) == (10.5, 3.0)


def test_a_line_every_ten_steps_is_no_gap(tmp_path, capsys, figures):
    path = tmp_path / "run.jsonl"
    lines = [json.dumps({"step": step, "lr": [0.1], "loss": 1.0}) for step in range(10, 100, 10)]
    path.write_text("\n".join(lines) + "\n")
    main([str(path)])
    assert "without a line" not in capsys.readouterr().out and not figures[0].axes[0].patches


def test_groups_with_one_lr_are_one_line(tmp_path, figures):
    main([str(rows(tmp_path / "run.jsonl", 10, lr=[0.1, 0.2, 0.1]))])
    assert set(shown(figures[0].axes[1])) == {"LR 0", "LR 1", "raise", "cut", "reset"}


def test_a_long_run_is_thinned_and_its_events_are_not(tmp_path, figures):
    main([str(rows(tmp_path / "run.jsonl", 30_000))])
    upper, lower = figures[0].axes
    assert len(shown(upper)["loss"]) <= 4100 and len(shown(upper)["smoothed"]) <= 1100
    assert len(shown(lower)["raise"]) == sum(n % 6 == 1 and n % 7 != 0 for n in range(1, 30_001))


def test_thinned():
    """First, least, largest and last of each part stay, and so does every spike."""
    for count in (1, 999, 4000, 4001, 54_321):
        values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        values[count // 3] = 50.0
        kept = thinned(values)
        assert torch.equal(kept, kept.sort().values) and kept[0] == 0 and kept[-1] == count - 1
        assert count // 3 in kept.tolist() and values[kept].min() == values.min()
        assert len(kept) == count if count <= 4000 else len(kept) < 4100


def test_averaged():
    steps = torch.arange(10_000, dtype=torch.float64)
    values = steps.clone()
    values[50] = math.nan
    x, y = averaged(steps, values)
    assert len(x) < 1100 and torch.equal(x, y) and x[-1] == 9999, "what is on the line stays on it"
    assert averaged(steps[:60], values[:60])[0].tolist() == [*range(50), *range(51, 60)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got no line of a step"),
        ('{"step": 1, "lr": [1]}\noh\n{"step": 2, "lr": [1]}\n', "line 2: expected one JSON object, got 'oh"),
        (None, "No such file or directory; name a file that is there"),
    ],
)
def test_files_that_cannot_be_drawn(tmp_path, capsys, text, says):
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.jsonl"
    if text is not None:
        path.write_text(text)
    assert says in refused(capsys, path)
    assert not (tmp_path / "run.png").exists()
    if text is None:
        rows(path, 3)
        assert "No such file" in refused(capsys, path, "-o", tmp_path / "none" / "run.png")
        assert "format" in refused(capsys, path, "-o", tmp_path / "run.nonsense")


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert "pip install matplotlib" in refused(capsys, rows(tmp_path / "run.jsonl", 3))
