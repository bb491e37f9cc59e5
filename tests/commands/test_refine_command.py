"""`python -m greedylr_fused`: its commands over real files, and what each says of a file that it cannot use."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from greedylr_fused.__main__ import main
from greedylr_fused.schedules import Refined

NORMS = torch.stack([torch.linspace(3, 1, 40), torch.linspace(30, 20, 40) ** 2], dim=1)


def lines(path, norms=NORMS, run=None, start=1, **more):
    """Lines as the main job writes them, with L1 norms beside."""
    with path.open("a") as file:
        for step, (l2, l1) in enumerate(norms.tolist(), start=start):
            row = {"step": step, "loss": 2.0, "grad_norm": l2, "grad_norm_l1": l1} | more
            file.write(json.dumps(row if run is None else {"run": run} | row) + "\n")
    return path


def refine(path, *options, out="refined.json"):
    main(["refine", str(path), "-o", str(path.parent / out), *map(str, options)])
    return Refined.load(path.parent / out)


def refused(capsys, path, *options):
    """The message of a command that ends with status 2, and wrote nothing."""
    with pytest.raises(SystemExit) as ended:
        refine(path, *options)
    assert ended.value.code == 2 and not (path.parent / "refined.json").exists()
    message = capsys.readouterr().err
    assert "got" in message and "Traceback" not in message
    return message


def test_lines_of_a_run(tmp_path, capsys):
    path = lines(tmp_path / "run.jsonl")
    with path.open("a") as file:
        file.write('{"step": 40, "held_out_bits_per_byte": 2.5}\n\n{"step": 41, "grad_')  # killed while writing
    schedule = refine(path)
    assert schedule == Refined.from_norms(NORMS)
    assert schedule.provenance["source"] == f"L1 norms of run in {path}"
    printed = capsys.readouterr().out
    peak = schedule.values.index(1.0)
    for part in ("L1 norms of 40 steps", "median over 5 steps", f"the peak at step {peak} ({peak / 40:.0%})"):
        assert part in printed
    assert "collapse" not in printed
    options = ("--optimizer", "sgd", "--tau", 0.2, "--total-steps", 25)
    assert refine(path, *options) == Refined.from_norms(NORMS, optimizer="sgd", tau=0.2, total_steps=25)


def test_a_step_that_is_there_twice_is_refused_by_its_number(tmp_path, capsys):
    path = lines(tmp_path / "run.jsonl", NORMS[:20])
    lines(path, NORMS[15:30], start=16)  # gone on from the checkpoint of step 15
    assert "line 21: expected each step once, got step 16 a second time" in refused(capsys, path)


@pytest.mark.parametrize("gap", ["no line", "lost"])
def test_steps_without_a_line_are_refused_by_their_numbers(tmp_path, capsys, gap):
    path = lines(tmp_path / "run.jsonl", NORMS[:20])
    if gap == "lost":
        with path.open("a") as file:
            file.write('{"step": 25, "lost": 5}\n')
    lines(path, NORMS[25:], start=26)
    says = (
        "5 steps up to 25 that were lost"
        if gap == "lost"
        else "from 1 to 40 once, got no line of 5 of them, the first of step 21"
    )
    assert says in refused(capsys, path)


def test_norms_that_were_not_finite_are_dropped(tmp_path):
    path = lines(tmp_path / "run.jsonl", NORMS[:20])
    lines(path, NORMS[20:21], start=21, grad_norm_l1=None)
    lines(path, NORMS[21:], start=22)
    norms = NORMS[:, 1].clone()
    norms[20] = torch.nan
    assert refine(path) == Refined.from_norms(norms)


def test_one_of_several_runs(tmp_path, capsys):
    path = lines(lines(tmp_path / "run.jsonl", run="fused"), NORMS.flip(0), run="torch")
    assert "one of fused, torch, got several runs; choose one with --run" in refused(capsys, path)
    assert "'adamw'" in refused(capsys, path, "--run", "adamw")
    assert refine(path, "--run", "torch") == Refined.from_norms(NORMS.flip(0))
    lone = lines(lines(tmp_path / "lone.jsonl", run="fused"), run="torch", grad_norm=None, grad_norm_l1=None)
    assert refine(lone) == Refined.from_norms(NORMS), "there is nothing to choose"


def test_l2_norms_are_not_taken_for_adam_unless_told_to(tmp_path, capsys):
    path = lines(tmp_path / "run.jsonl", grad_norm_l1=None)
    message = refused(capsys, path)
    for part in ("expected L1 norms, which adam needs, got 40 steps without", "grad_norms=True", "--l2"):
        assert part in message
    schedule = refine(path, "--l2")
    assert schedule == Refined.from_norms(NORMS[:, 0]) and schedule.provenance["source"].startswith("L2 norms")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": 1, "loss": 2.0}\n', '"grad_norm_l1"'),
        ('{"step": 1, "grad_norm": 1}\n[1, 2]\n{}\n', "line 2: expected one JSON object, got '[1, 2]'"),
        ('{"step": 1, "grad_norm": 1}\noh\n{}\n', "line 2: expected one JSON object, got 'oh'"),
        ('{"step": 1.5, "grad_norm": 1}\n', "got {'step': 1.5"),
        ('{"step": 99999999999, "grad_norm": 1}\n', "from 0 to 33554432"),
        ('{"step": 1, "grad_norm_l1": "1"}\n', "norms that are numbers or null"),
        ('{"step": 1, "grad_norm_l1": 1}\n', "expected 2 or more finite gradient norms, got 1 of 1"),
        ("norms", "got none; record them"),
    ],
)
def test_texts_that_it_cannot_use(tmp_path, capsys, text, says):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    assert says in refused(capsys, path)


def test_what_is_no_file(tmp_path, capsys):
    assert "got a folder" in refused(capsys, tmp_path)
    with pytest.raises(SystemExit):
        refine(tmp_path / "none.jsonl")
    assert "No such file" in capsys.readouterr().err


def test_a_late_peak_is_remarked_upon(tmp_path, capsys):
    norms = torch.ones(40, 2)
    norms[36:] = 1e-2
    refine(lines(tmp_path / "run.jsonl", norms))
    assert "the norms collapse at the end" in capsys.readouterr().out


def test_the_plot(tmp_path, capsys, monkeypatch):
    path = lines(tmp_path / "run.jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert "pip install matplotlib" in refused(capsys, path, "--plot", tmp_path / "norms.png")
    monkeypatch.undo()
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("no matplotlib")
    refine(path, "--plot", tmp_path / "norms.png", "--total-steps", 9)
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands(capsys):
    main(["doctor"])
    assert "backends, in order of preference" in capsys.readouterr().out
    for given, says in (([], "COMMAND"), (["train"], "'doctor', 'refine'"), (["doctor", "now"], "now")):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "refine  make a schedule" in capsys.readouterr().out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "greedylr_fused", "--version"], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.startswith("greedylr_fused ")
