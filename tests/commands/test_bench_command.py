"""`python -m greedylr_fused bench`: a short run of it, and what it makes of times that are given to it."""

import contextlib
import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from greedylr_fused.__main__ import main
from greedylr_fused.commands.bench import cases as bench_cases
from greedylr_fused.commands.bench import command as bench
from greedylr_fused.commands.bench import timing as bench_timing
from greedylr_fused.commands.bench.cases import CONTENDERS, FOREACH, FUSED, OURS, STEP, WORKS, Case
from greedylr_fused.commands.bench.timing import Result, Spread

CPU = torch.device("cpu")
TINY = Case("tiny", ((8,), (3, 5)), torch.float32)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The output of a run over few parameters, its progress, and its file."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        main(
            [
                "bench",
                "--device",
                "cpu",
                "--seconds",
                "0.2",
                "--elements",
                "1500",
                "--threads",
                "2",
                "--json",
                str(path),
            ]
        )
    assert torch.get_num_threads() == threads
    return out.getvalue(), err.getvalue(), json.loads(path.read_text())


def test_the_file_has_a_row_for_everything(ran):
    _, _, written = ran
    assert written["complete"] and written["environment"].keys() == {"greedylr_fused", "torch", "Python", "on"}
    assert "2 threads" in written["environment"]["on"]
    rows = written["rows"]
    named = [(row["case"], row["work"], row["optimizer"]) for row in rows]
    names = [case.name for case in bench_cases.cases(1500)]
    assert named == [(case, work, contender) for case in names for work in WORKS for contender in CONTENDERS]
    for row in rows:
        ms, size = row["ms"], row["elements"] * row["bytes_per_parameter"]
        assert 0 < ms["p20"] <= ms["median"] <= ms["p80"] and ms["count"] >= 2 and ms["count"] % 2 == 0
        assert row["gb_per_s"] == pytest.approx(size / ms["median"] / 1e6)
        assert row["speed"].keys() == {f"over {FUSED}", f"over {FOREACH}"} and row["why_not"] is None
        assert row["speed"][f"over {row['optimizer']}" if row["optimizer"] != OURS else f"over {FUSED}"]["median"] > 0
    assert {(row["dtype"], row["work"] == STEP): row["bytes_per_parameter"] for row in rows} == {
        ("float32", True): 28,
        ("float32", False): 32,
        ("bfloat16", True): 14,
        ("bfloat16", False): 16,
    }


def test_the_tables_show_every_contender_at_all_work(ran):
    out, err, _ = ran
    for case in bench_cases.cases(1500):
        assert out.count(f"\n{case.name}: ") == 1 and case.name in err
    for work in WORKS:
        for contender in CONTENDERS:
            row = rf"^ +{re.escape(work)} +{contender} +[\d.,]+ +[\d.,]+-[\d.,]+ +[\d.,]+ +[\d.]+ *$"
            assert len(re.findall(row, out, re.M)) == 4
    assert re.search(r"^FusedAdamW is faster in \d+ of 24 comparisons$", out, re.M)


@pytest.mark.parametrize("work", WORKS)
def test_all_contenders_do_the_same_work(work):
    """In float64, over more steps than it takes the schedule to cut the LR."""
    ends = []
    for contender in CONTENDERS:
        workload = bench_cases.Workload(Case("small", ((40,), (7, 3)), torch.float64), CPU)
        step = bench_cases.build(contender, work, workload, "auto")
        for _ in range(30):
            step()
        ends.append(torch.cat([param.detach().flatten() for param in workload.params]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("elements", [1, 1_000, 70_000, 5_000_000, 50_000_000, 500_000_000])
def test_cases_have_the_parameters_that_are_allowed(elements):
    large, halved, gpt2, many = bench_cases.cases(elements)
    assert large.elements == halved.elements == elements and halved.dtype == torch.bfloat16
    assert len(gpt2.sizes) == 148 and (gpt2.elements <= elements or "width 8," in gpt2.name)
    assert len(many.sizes) == 1_000 and many.elements <= max(1_000, elements)
    if elements == 500_000_000:  # GPT-2 as published, and the 64 x 64 of the other benchmarks
        assert gpt2.elements == 124_439_808 and many.sizes[0] == (64, 64)


def test_sizes_follow_from_time_and_memory(monkeypatch):
    chosen = bench_timing.affordable(CPU, 0.1, 1)
    assert re.fullmatch("[125]0*", str(chosen)) and 1_000 <= chosen <= bench_cases.MOST["cpu"]
    monkeypatch.setattr(bench_timing, "that_fit", lambda device: 9_999)
    assert bench_timing.affordable(CPU, 1e6, 1) == 2_000


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0, order=[])
    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: now.seconds)
    return now


def timer(clock, name, *seconds):
    """Takes these times, one after the other, and then the last of them."""
    left = list(seconds)

    def blocked_autorange(min_run_time):
        took = left.pop(0) if len(left) > 1 else left[0]
        clock.seconds += took
        clock.order.append(name)
        return SimpleNamespace(median=took)

    return SimpleNamespace(blocked_autorange=blocked_autorange)


def test_rounds_go_to_and_fro_and_end_in_time(clock):
    timers = {"a": timer(clock, "a", 1.0, 2.0, 3.0), "b": timer(clock, "b", 1.0)}
    found = bench_timing.in_rounds(timers, 14.0)
    assert "".join(clock.order) == "abba" * 2  # 5 seconds, 8; a third pair of rounds would end after 14
    assert found == {"a": [1.0, 2.0, 3.0, 3.0], "b": [1.0] * 4}


def test_two_rounds_are_done_where_there_is_no_time(clock):
    assert bench_timing.in_rounds({"a": timer(clock, "a", 9.0)}, -1.0) == {"a": [9.0, 9.0]}


def results(**speeds):
    """Of ours, with these speeds over torch's."""
    of = {FUSED if name == "fused" else FOREACH: Spread(sum(pair) / 2, *pair, 6) for name, pair in speeds.items()}
    return [Result(TINY, STEP, OURS, Spread(1e-3, 1e-3, 2e-3, 6), of)]


def test_where_it_is_slower_is_said_plainly():
    assert bench._verdict(results(fused=(0.8, 0.9), foreach=(2.0, 3.0))) == [
        "FusedAdamW is faster in 1 of 2 comparisons",
        "  slower: tiny, step: 0.85 times the speed of torch fused",
    ]
    assert bench._verdict(results(fused=(0.9, 1.1), foreach=(0.5, 0.7))) == [
        "FusedAdamW is faster in 0 of 2 comparisons",
        "  slower: tiny, step: 0.60 times the speed of torch foreach",
        "  no difference beyond the spread: tiny, step: 1.00 times the speed of torch fused",
    ]


def test_a_contender_that_cannot_run_keeps_its_row(monkeypatch, capsys):
    def build(contender, *rest):
        if contender == FUSED:
            raise RuntimeError("no kernel\n  for this")
        return lambda: None

    monkeypatch.setattr(bench_timing, "build", build)
    found = bench_timing.measure(TINY, CPU, 0.01, 1, "auto")
    assert [result.seconds is None for result in found] == [contender == FUSED for contender in CONTENDERS] * 3
    assert all(result.speed.keys() == {FOREACH} for result in found if result.contender != FUSED)
    assert bench._record(found[1])["why_not"] == "no kernel for this" and bench._record(found[1])["ms"] is None
    bench._print_tables(found)
    assert capsys.readouterr().out.count(FUSED) == 3
    assert bench._verdict(found)[-1] == "  could not run: tiny, clip+GreedyLR, torch fused: no kernel for this"


def test_tables_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    bench._print_tables(results(fused=(1.2, 1.3)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "tiny: 23 parameters of 28 bytes each, 32 with clipping"
    assert lines[2].split() == ["work", "optimizer", "ms", "20-80", "%", "GB/s", "speed"]
    assert lines[3].split() == ["step", "FusedAdamW", "1.00", "1.00-2.00", "0.000644", "1.25"]


def test_what_was_measured_before_an_interrupt_is_kept(monkeypatch, capsys, tmp_path):
    def measure(case, *rest):
        if case.dtype == torch.bfloat16:
            raise KeyboardInterrupt
        return results(fused=(1.2, 1.3))

    monkeypatch.setattr(bench_timing, "measure", measure)
    path = tmp_path / "bench.json"
    main(["bench", "--device", "cpu", "--elements", "2000", "--json", str(path)])
    printed = capsys.readouterr()
    assert "interrupted; what follows is what was measured before" in printed.err and "1.25" in printed.out
    written = json.loads(path.read_text())
    assert not written["complete"] and len(written["rows"]) == 1


@pytest.mark.parametrize(
    "options, says",
    [
        (["--device", "tpu"], "--device: expected cpu..., got 'tpu'"),
        (["--elements", "0"], "--elements: expected a number above 0, got '0'"),
        (["--seconds", "soon"], "--seconds: expected a number above 0, got 'soon'"),
        (["--seconds", "inf"], "--seconds: expected a number above 0, got 'inf'"),
        (["--elements", str(10**15)], "--elements: expected up to ..., got 1,000,000,000,000,000"),
        (["--device", "cpu", "--backend", "cuda"], 'backend="cuda" cannot run on cpu'),
        (["--json", "absent/bench.json"], "No such file or directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(options, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["bench", *options])
    pattern = ".*".join(map(re.escape, says.split("...")))
    assert ended.value.code == 2 and re.search(pattern, capsys.readouterr().err)


@pytest.mark.parametrize(("load", "said"), [(0.5, 0), (99.0, 1)])
def test_a_busy_machine_is_told_of(monkeypatch, load, said):
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert ["load 99.0 on" in line for line in bench._busy()] == [True] * said
