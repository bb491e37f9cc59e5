"""The benchmarks' protocol and records, in runs of seconds. Nothing here looks at how fast anything is."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

from benchmarks import __main__ as everything
from benchmarks import harness, markdown, options, plots, report
from benchmarks.cases import shapes
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.peers import Contender
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload, peak_bytes
from benchmarks.gpu import summary
from benchmarks.harness import Sample
from benchmarks.host import looks, overhead
from benchmarks.options import Asked
from benchmarks.throughput import optimizer_step, rates, roofline
from greedylr_fused.commands.bench import Spread

CPU = torch.device("cpu")
LATE = Asked(CPU, 1.0, until=0.0)
SMALL = Shapes("small", "for tests", ((100,), (7, 30), (1,)))
COMMANDS = ["benchmarks"] + [
    f"benchmarks.{name}"
    for name in ("throughput.optimizer_step", "throughput.train_step", "throughput.in_backward", "throughput.roofline")
    + ("host.overhead", "host.looks", "host.control_cost", "host.ranks", "plots", "markdown", "convergence")
    + ("two_optimizers",)
]


class FakeClock:
    """Takes the next of given times and notes which step it was asked to run."""

    device = CPU

    def __init__(self, times=None):
        self.times = times

    def __call__(self, step):
        name = step()
        seconds = 1.0 if self.times is None else self.times[name].pop(0)
        return Sample(seconds, seconds)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="expected one of gpt2-124m.*, got 'nothing'"):
        shapes.shapes("nothing")
    for name in ("adam", "torch-fused+fast"):
        with pytest.raises(ValueError, match=r"torch-fused.*\+clip"):
            Contender.parse(name)
    with pytest.raises(SystemExit, match="expected fp32, bf16"):
        options.chosen("fp33", ["fp32", "bf16"], [], "mixes")


def test_bytes_follow_from_the_types():
    moved = {name: (mix.bytes_read, mix.bytes_written, mix.bytes_moved(clip=True)) for name, mix in MIXES.items()}
    assert moved == {
        "fp32": (16, 12, 32),
        "bf16": (8, 6, 16),
        "bf16-fp32states": (12, 10, 24),
        "fp32-amsgrad": (20, 16, 40),
        "fp32-bf16states": (12, 8, 24),
        "offload": (14, 12, 28),
    }


def test_the_readme_has_the_same_bytes():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name, mix in MIXES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |")).split("|")[3:7]
        numbers = [mix.bytes_read, mix.bytes_written, mix.bytes_moved(), mix.bytes_moved(clip=True)]
        assert [int(cell) for cell in row] == numbers


def test_rounds_alternate_their_order():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ABC"}
    shares = []
    found = harness.compare(steps, FakeClock(), seconds=0, rounds=(3, 9), warmup=1, on_round=shares.append)
    assert "".join(calls) == "ABC" + "ABC" + "CBA" + "ABC" + "CBA"  # warm-up, then an even number of rounds
    assert {name: len(samples) for name, samples in found.items()} == dict.fromkeys("ABC", 4)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_ratio_is_of_times_from_the_same_round():
    """A machine that becomes ten times slower halfway: the ratio of each round is 2 or 3, as that of no two medians."""
    base, ours = [2.0, 3.0, 20.0, 30.0, 2.0, 30.0], [1.0, 1.0, 10.0, 10.0, 1.0, 10.0]
    assert Spread.of_ratios(base, ours).median == 2.5
    assert Spread.of(base).median / Spread.of(ours).median != 2.5
    work = Workload(SMALL, MIXES["fp32"], CPU)
    times = {"torch-fused+clip": base, "ours-cpu+clip": ours, "roofline": [0.5 * t for t in ours]}
    samples = {name: [Sample(t, t) for t in values] for name, values in times.items()}
    found = rates.rates(samples, "ours-cpu+clip", work)
    assert found["base"] == "torch-fused+clip" and found["ratio"]["median"] == 2.5
    per_roofline_byte = work.shapes.elements * 32 / roofline.bytes_moved(work)
    assert math.isclose(found["share_of_roofline"]["median"], 0.5 * per_roofline_byte)
    assert math.isclose(found["gb_per_s"]["median"], Spread.of([311 * 32 / t / 1e9 for t in ours]).median)


def test_what_takes_too_long_is_done_twice_and_begun_no_more():
    steps = {name: lambda name=name: name for name in "AB"}
    found = harness.compare(steps, FakeClock(), seconds=0, rounds=(6, 9), longest=0, warmup=0)
    assert {name: len(samples) for name, samples in found.items()} == {"A": 2, "B": 2}
    late = optimizer_step.run({"gpt2-124m": ["fp32"]}, ["ours-cpu"], LATE)
    assert late.left_out == [{"what": "gpt2-124m fp32", "why": report.OVER}] and not late.records
    late = overhead.run({"plain": [10]}, LATE)
    assert late.left_out == [{"what": "10 plain tensors", "why": report.OVER}] and not late.records


def test_percentiles_are_values_that_occurred():
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (spread.median, spread.p20, spread.p80, spread.count) == (3.5, 2.0, 5.0, 6)
    assert spread.scaled(10).as_dict() == {"median": 35.0, "p20": 20.0, "p80": 50.0, "count": 6}
    few = Spread.of([4.0, 1.0, 3.0, 2.0])
    assert (few.median, few.p20, few.p80) == (2.5, 1.0, 4.0)


def test_graphs_and_options_are_compared_with_the_same_work():
    assert Contender.parse("ours-triton+graph+clip").name == "ours-triton+clip+graph"
    assert Contender.parse("ours-triton+graph+clip").base.name == "torch-fused+clip"


def test_peak_memory_sees_what_a_step_takes():
    held = peak_bytes(lambda: torch.ones(4_000_000).add(1), CPU)
    assert held is None or 16_000_000 <= held <= 64_000_000


def test_records_files_pictures_and_tables(tmp_path, monkeypatch, capsys):
    """Tiny runs of both benchmarks, then everything that is made of their files."""
    monkeypatch.setattr(optimizer_step, "shapes", lambda name: SMALL)
    monkeypatch.setattr(harness, "last_level_cache", lambda: 1 << 20)
    contenders = ["ours-cpu", "ours-cpu+clip+greedy", "torch-foreach", "torch-capturable"]
    found = optimizer_step.run({"small": ["fp32", "bf16-fp32states"]}, contenders, Asked(CPU, 0.0, out=tmp_path))
    content = report.load(tmp_path / "step_throughput.json")
    assert content["records"] == found.records
    for key in ("device", "commit", "date", "torch", "triton", "python", "CPU", "cores", "threads", "greedylr_fused"):
        assert content["environment"][key]
    full = [r["contender"] for r in found.records if r["mix"] == "fp32"]
    assert full == ["roofline", *contenders[:3], "torch-fused", "torch-fused+clip+greedy"]
    ours = next(r for r in found.records if r["contender"] == "ours-cpu+clip+greedy")
    assert ours.keys() >= {"ms", "device_ms", "host_us", "gb_per_s", "share_of_roofline", "ratio", "peak_bytes", "base"}
    assert (ours["parameters"], ours["tensors"], ours["bytes_per_parameter"]) == (311, 3, 32)
    left = {entry["what"]: entry["why"] for entry in content["left_out"]}
    assert "small fp32 torch-capturable" in left and "small bf16-fp32states torch-fused" in left

    host = overhead.run({"plain": [3], "dtensor": [3]}, Asked(CPU, 0.0, out=tmp_path))
    assert {(r["kind"], r["contender"]) for r in host.records} >= {
        ("plain", "ours-cpu+clip"),
        ("dtensor", "torch-fused"),
    }
    assert all(r["us_per_tensor"]["median"] == pytest.approx(r["us_per_step"]["median"] / 3) for r in host.records)

    optimizer_step.print_report(found)
    overhead.print_report(host)
    assert "ours-cpu+clip+greedy" in capsys.readouterr().out
    assert len(everything.BENCHMARKS["step_throughput"].lines(found.records)) == 2
    assert everything.BENCHMARKS["host_overhead"].lines(host.records)
    pytest.importorskip("matplotlib")
    assert {path.name for path in plots.draw(tmp_path)} == {
        "ratio_to_torch_fused.png",
        "share_of_roofline.png",
        "host_overhead.png",
    }
    written_between_marks(tmp_path, content)


def test_without_torchs_fused_steps_there_are_times_and_no_ratios(tmp_path, monkeypatch, capsys):
    build = overhead.peers.build

    def refuse(contender, work):
        if contender.family == "torch-fused":
            raise harness.NotOffered("not in this version")
        return build(contender, work)

    monkeypatch.setattr(overhead.peers, "build", refuse)
    found = overhead.run({"plain": [3]}, Asked(CPU, 0.0, out=tmp_path))
    assert found.records and all(record["ratio"] is None for record in found.records)
    overhead.print_report(found)
    assert "ours-cpu" in capsys.readouterr().out
    assert not everything.BENCHMARKS["host_overhead"].lines(found.records)
    assert len(summary.highlights(tmp_path)) == 2


def written_between_marks(folder, content):
    document = folder / "README.md"
    marks = ("<!-- speed: written by benchmarks/markdown.py -->", "<!-- end of speed -->")
    document.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    command = [str(folder / "step_throughput.json"), "--into", str(document), "--name", "speed"]
    assert markdown.main([*command, "--check"]) == 1
    assert markdown.main(command) == 0
    assert markdown.main([*command, "--check"]) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "](step_throughput.json)" in text
    rows = [line for line in text.splitlines() if line.startswith("| small")]
    assert len(rows) == 2  # bf16-fp32states has nothing beside it
    with pytest.raises(ValueError, match="expected one .* before one .*, got other marks of 'other'"):
        markdown.rewritten(text, "other", "")


def test_a_case_that_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(optimizer_step, "bytes_available", lambda device: 1000)
    found = report.Report("step_throughput", CPU, {})
    asked = Asked(CPU, 0.0)
    optimizer_step.measure("gpt2-124m", MIXES["fp32"], [Contender.parse("ours-cpu")], asked, found)
    assert not found.records and "GiB are free" in found.left_out[0]["why"]


def test_result_files_are_checked(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"records": []}))
    with pytest.raises(ValueError, match="expected .*, got one without benchmark, config"):
        report.load(path)


@pytest.mark.parametrize(
    "value, text", [(None, "-"), (0.0, "0"), (1234.5, "1,234"), (0.012345, "0.0123"), (1.0, "1.00")]
)
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


HELP = """
import os, runpy, sys
import benchmarks.cases.peers, benchmarks.evidence.tasks, benchmarks.options  # seconds of imports, once for all
for name in sys.argv[1:]:
    if os.fork() == 0:
        sys.argv = [name, "--help"]
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # without the second that torch takes to be torn down
    _, status = os.wait()
    assert status == 0, name
"""


def test_every_command_explains_itself():
    command = [sys.executable, "-c", HELP, *COMMANDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    explained = done.stdout.split("usage: ")[1:]
    assert [text.split()[2] for text in explained] == COMMANDS and min(map(len, explained)) > 290


@pytest.mark.parametrize("given", ["--counts ten", "--counts 0,10", "--seconds 0", "--seconds -1"])
def test_numbers_that_make_no_sense_are_refused_in_one_line(given):
    with pytest.raises(SystemExit, match=given.split()[0]):
        overhead.main(given.split())


@pytest.mark.parametrize("given", ["--speed 0", "--minutes nan", "--device tpu", "--device xpu", "--only steps"])
def test_options_of_all_benchmarks_are_refused_in_one_line(given):
    with pytest.raises(SystemExit, match=f"{given.split()[0]}: expected .*got {given.split()[1]}"):
        everything.main(given.split())


def test_the_table_of_results_is_up_to_date():
    folder = Path(markdown.__file__).parent
    result = folder / "results" / "cpu-epyc-2cores" / "step_throughput.json"
    assert markdown.main([str(result), "--into", str(folder / "RESULTS.md"), "--check"]) == 0


def test_looks_are_timed_in_every_way(capsys):
    found = looks.run({"plain": [2]}, Asked(CPU, 0.02))
    assert {record["way"].split(",")[0] for record in found.records} == {"direct", "dlpack", "python"}
    assert [record["ratio"]["median"] for record in found.records][:2] == [1.0, 1.0]
    looks.print_report(found)
    assert "2 plain, dlpack, look alone" in capsys.readouterr().out


def test_the_first_picture_is_of_whole_steps_that_were_measured(tmp_path):
    pytest.importorskip("matplotlib")
    record = {"shapes": "gpt2-124m", "mix": "fp32", "contender": "ours-cpu+clip+greedy", "ratio": {"median": 1.5}}
    assert plots.headline([record], "this machine", tmp_path / "speed.png")
    for other in (
        {"contender": "ours-cpu"},
        {"contender": "torch-fused+clip+greedy"},
        {"mix": "offload"},
        {"ratio": None},
    ):
        assert not plots.headline([record | other], "this machine", tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["speed.png"]
