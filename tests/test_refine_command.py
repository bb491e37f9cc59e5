"""`python -m greedylr_fused`: its commands over real files, and what each says of a file that it cannot use."""

import base64
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from greedylr_fused import FusedAdamW
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


def trained():
    """The state_dict of an optimizer that has made a step, as a checkpoint of the run that recorded these norms."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    opt = FusedAdamW([param])
    opt.step()
    state = opt.state_dict()
    state["param_groups"][0]["control"] = {"grad_norms": base64.b64encode(NORMS.numpy().tobytes()).decode()}
    return state


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


def test_steps_written_twice_and_steps_without_a_line(tmp_path):
    path = lines(tmp_path / "run.jsonl", 9 * NORMS[:20])
    lines(path, NORMS[:30])  # gone on from the checkpoint of step 0
    lines(path, NORMS[35:], start=36)
    lines(path, NORMS[35:36], start=39, grad_norm_l1=None)
    norms = NORMS[:, 1].clone()
    norms[30:35] = norms[38] = torch.nan
    assert refine(path) == Refined.from_norms(norms)
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"grad_norm_l1": norm}) + "\n" for norm in NORMS[:, 1].tolist()))
    assert refine(bare) == Refined.from_norms(NORMS)


def test_one_of_several_runs(tmp_path, capsys):
    path = lines(lines(tmp_path / "run.jsonl", run="fused"), NORMS.flip(0), run="torch")
    assert "one of fused, torch; choose one with --run" in refused(capsys, path)
    assert "'adamw'" in refused(capsys, path, "--run", "adamw")
    assert refine(path, "--run", "torch") == Refined.from_norms(NORMS.flip(0))
    lone = lines(lines(tmp_path / "lone.jsonl", run="fused"), run="torch", grad_norm=None, grad_norm_l1=None)
    assert refine(lone) == Refined.from_norms(NORMS), "there is nothing to choose"


def test_l2_norms_are_not_taken_for_adam_unless_told_to(tmp_path, capsys):
    path = lines(tmp_path / "run.jsonl", grad_norm_l1=None)
    message = refused(capsys, path)
    for part in ("without L1 norms", "record_grad_norms=", "--l2"):
        assert part in message
    schedule = refine(path, "--l2")
    assert schedule == Refined.from_norms(NORMS[:, 0]) and schedule.provenance["source"].startswith("L2 norms")


def test_an_optimizers_state_and_what_contains_one(tmp_path):
    expected = Refined.from_norms(NORMS)
    torch.save(trained(), tmp_path / "optimizer.pt")
    assert refine(tmp_path / "optimizer.pt") == expected
    plain = trained()
    del plain["param_groups"][0]["control"]
    whole = {"step": 40, "trainers": {"fused": {"optimizer": trained()}, "torch": {"optimizer": plain}}}
    torch.save(whole, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=False)
    schedule = refine(tmp_path / "checkpoint.pt")
    assert schedule == expected and "trainers.fused.optimizer" in schedule.provenance["source"]


def without_norms():
    state = trained()
    state["param_groups"][0]["control"] = {"step": 1.0}
    return state


def cut_short():
    state = trained()
    state["param_groups"][0]["control"]["grad_norms"] = base64.b64encode(b"12345").decode()
    return state


class Own:
    pass


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (without_norms, "without recorded norms"),
        (cut_short, "base64 of float32 pairs"),
        (lambda: {"model": {"weight": torch.ones(2)}}, "no optimizer"),
        (Own, "plain Python data"),
    ],
)
def test_checkpoints_that_it_cannot_use(tmp_path, capsys, content, says):
    torch.save(content(), tmp_path / "checkpoint.pt")
    assert says in refused(capsys, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": 1, "loss": 2.0}\n', '"grad_norm_l1"'),
        ('{"step": 1, "grad_norm": 1}\n[1, 2]\n{}\n', "line 2: got '[1, 2]'"),
        ('{"step": 1, "grad_norm": 1}\noh\n{}\n', "line 2: got 'oh'"),
        ('{"step": 1.5, "grad_norm": 1}\n', "line 1: got {'step': 1.5"),
        ('{"step": 99999999999, "grad_norm": 1}\n', "from 0 to 2**25"),
        ('{"step": 1, "grad_norm_l1": "1"}\n', "allowed is"),
        ('{"step": 1, "grad_norm_l1": 1}\n', "1 finite gradient norms of 1"),
        ("norms", "no checkpoint that can be read"),
    ],
)
def test_texts_that_it_cannot_use(tmp_path, capsys, text, says):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    assert says in refused(capsys, path)


def test_what_is_no_file(tmp_path, capsys):
    assert "dcp_to_torch" in refused(capsys, tmp_path)
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
