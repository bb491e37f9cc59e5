"""The verdicts and the report of the preset `find`, of made-up runs whose verdicts are known."""

import itertools
import math

import pytest

from benchmarks.evidence.comparison import Evidence
from benchmarks.evidence.document import write_report
from benchmarks.evidence.found import Found
from benchmarks.evidence.plan import TUNING_SEED, Plan
from benchmarks.evidence.presets import Preset, Share
from benchmarks.evidence.results import Results
from benchmarks.evidence.statistics import median, share

NAMES = ("linear", "wsd", "cosine", "greedy-linear", "greedy-wsd", "mechanic-linear", "autolrs")
BEST_LR = 3e-3
#: Loss above `linear` at its tuned LR: at its LR, at a third, at three times.
MADE_UP = {
    "linear": (0.0, 0.2, 0.1),
    "wsd": (-0.01, 0.2, 0.1),  # better, recovers nothing
    "cosine": (0.0, 0.05, 0.04),  # 75 and 60 %
    "greedy-linear": (0.0, 0.09, 0.06),  # 55 and 40 %
    "greedy-wsd": (-0.01, 0.19, 0.09),  # better everywhere
    "mechanic-linear": (0.02, 0.02, 0.02),  # worse at its LR, 90 and 80 %
    "autolrs": (0.0, math.inf, 0.3),  # breaks off, and makes it worse
}


def tasks(*names):
    pairs = (("spikes", "linear"), ("spikes", "linear skip-spikes"), ("shift", "linear"), ("shift", "greedy-wsd"))
    return tuple(Share(name, NAMES, NAMES, disturbed=pairs, seeds=5, first_seed=100) for name in names)


def made_up(run):
    name = run.schedule.removesuffix(" skip-spikes")
    lr = 1.0 if name == "mechanic-linear" else BEST_LR
    off = 0 if math.isclose(run.lr, lr) else 1 if run.lr < lr else 2
    loss = 1.0 + 0.1 * (run.seed % 7) + MADE_UP[name][off] * (1 + 0.01 * (run.seed % 3))
    loss += 0.5 * (run.scenario == "spikes" and name == run.schedule)
    loss += 0.05 * (run.scenario == "shift" and name == "greedy-wsd" and run.task == "mlp")
    if run.seed >= TUNING_SEED:
        loss = abs(math.log(run.lr / BEST_LR))
    return loss


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("find")
    results = Results(folder / "results.jsonl", "a")
    plan = Plan(Preset(tasks("mlp", "convnet"), finds=True), results)
    while runs := list(plan.missing()):
        for run in runs:
            loss = made_up(run)
            final = loss if math.isfinite(loss) else None
            results.add(run, {"final": final, "failed": None if final else "a loss", "seconds": 1.0, "curve": []})
    return folder, plan, results


def test_a_share_is_that_of_all_resamples():
    part, whole = [1.0, 3.0, 2.0], [2.0, 4.0, 8.0]
    every = []
    for picks in itertools.product(range(3), repeat=3):
        every.append(median([part[i] for i in picks]) / median([whole[i] for i in picks]))
    found = share(part, whole)
    assert found.median == 2.0 / 4.0 and (found.low, found.high) == (min(every), max(every))
    assert share([-math.inf] * 3, whole).median == -math.inf
    some = share([1.0, 1.0, 1.0], [-1.0, 2.0, 2.0])  # of the resamples with a median cost of -1 nothing is said
    assert (some.low, some.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="a whole above 0"):
        share([1.0], [0.0])


def test_verdicts_are_those_of_the_plan(made):
    _, plan, results = made
    found = Found(Evidence(plan, results))
    mlp = found.shares[0]
    assert found.counts(mlp, 3.0) and not found.counts(mlp, 1.0) and found.recovered(mlp, "cosine", 1.0) is None
    assert found.recovered(mlp, "cosine", 3.0).median == pytest.approx(0.6)
    goals = {name: found.goal(mlp, name) for name in NAMES if name != "linear"}
    assert {name for name, goal in goals.items() if goal.reached} == {"cosine"}
    assert {name for name, goal in goals.items() if not goal.as_good} == {"mechanic-linear"}
    assert found.verdict("cosine") == "the answer, firmly: 2 of 2 tasks"
    assert found.verdict("mechanic-linear") == "no help: 0 of 2 tasks"
    assert goals["autolrs"].shares[1 / 3].median == -math.inf
    assert found.mean_share("autolrs", found.shares) == -1.0
    # Mechanic's mean share is the largest, but it is worse at its own LR on two tasks.
    assert found.best(found.shares) == ["cosine", "greedy-linear"]


def test_a_schedule_is_first_only_if_it_is_worse_nowhere(made):
    _, plan, results = made
    found = Found(Evidence(plan, results))
    assert found.against_linear("greedy-wsd")["shift"] == ["worse", "better"]
    assert found.against_linear("greedy-wsd")["3 x LR"] == found.against_linear("wsd")["best LR"] == ["better"] * 2
    assert found.first() == ["wsd"]  # greedy-wsd loses where the data change


def test_the_report_has_every_table(made):
    folder, plan, _ = made
    paths = write_report(folder, plan)
    text = paths[0].read_text()
    assert [path.name for path in paths] == ["REPORT.md", "wrong_lr.png"] and paths[1].stat().st_size > 1000
    for expected in (
        "**yes**: tie; +75 % at 1/3, +60 % at 3",
        "None are written yet",
        "comparison is on seeds from 100",
        "run further: cosine, greedy-linear.",
        "linear skip-spikes",
        "the answer, firmly: 2 of 2 tasks",
    ):
        assert expected in text
    spikes = [line for line in text.splitlines() if line.startswith("| spikes | linear skip-spikes |")]
    assert len(spikes) == 2 and all(line.count("**-0.5000") == 2 for line in spikes)
    (folder / "CONCLUSIONS.md").write_text("It was found.\n")
    assert "It was found." in write_report(folder, plan)[0].read_text()
