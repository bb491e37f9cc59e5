"""benchmarks/convergence.py: its statistics, its resuming, and a report from few runs. No conclusion is tested."""

import itertools
import json
import math

import pytest
import torch

from benchmarks import convergence
from benchmarks.evidence import pictures, runner, training
from benchmarks.evidence.document import write_report
from benchmarks.evidence.plan import EXTENSIONS, TUNING_SEED, Plan, Run, seen_as, times
from benchmarks.evidence.presets import ALL, FEW, PRESETS, SCENARIOS, Preset, Share
from benchmarks.evidence.results import Results
from benchmarks.evidence.schedules import ABOUT, LOSS_DRIVEN, SCHEDULES, STEP, Context
from benchmarks.evidence.statistics import bootstrap, median, paired
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainees import LABEL_NOISE, Setting
from greedylr_fused.schedules import LossSpec

CPU = torch.device("cpu")


class Known:
    """Finished runs of a made-up loss."""

    def __init__(self, loss):
        self.loss, self.asked = loss, []

    def get(self, run):
        self.asked.append(run)
        return {"final": self.loss(run), "failed": None}


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [5.0, 1.0, 4.0, 2.0], [2.0, math.inf, 1.0, 3.0, 7.0]])
def test_the_bootstrap_is_that_of_all_resamples(values):
    """Its ends are quantiles of the medians of all n**n resamples, but for the error of drawing some of them."""
    found = bootstrap(values)
    every = sorted(median(resample) for resample in itertools.product(values, repeat=len(values)))
    assert found.median == median(values) and found.count == len(values)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        below, upto = (sum(m < end for m in every), sum(m <= end for m in every))
        drawn = 5 * math.sqrt(share * (1 - share) / 10_000)  # five standard deviations of a share of 10,000
        assert below / len(every) <= share + drawn and upto / len(every) >= share - drawn
    assert bootstrap(values) == found  # seeded


def test_five_values_count_as_different_only_if_all_have_one_sign():
    assert [paired([a] * 5, [1.0] * 5).verdict for a in (0.5, 1.0, 1.5)] == ["better", "tie", "worse"]
    assert paired([0.5] * 4, [1.0] * 4).verdict == "few"
    theirs = [1.0, 2.0, 3.0, 4.0, 5.0]
    less = paired([x - 0.1 * (k + 1) for k, x in enumerate(theirs)], theirs)
    assert less.verdict == "better" and (less.wins, less.losses, less.ties) == (5, 0, 0)
    assert less.sign_test == 2 / 2**5 and math.isclose(less.difference.median, -0.3)
    assert paired([0.9, 1.9, 2.9, 3.9, 5.1], theirs).verdict == "tie"
    inf = math.inf
    broken = paired([inf, inf, 1.0], [inf, 1.0, inf])
    assert (broken.wins, broken.losses, broken.ties) == (1, 1, 1) and broken.difference.median == 0.0
    assert paired([1.0, 2.0], [1.0, 2.0]).sign_test == 1.0
    with pytest.raises(ValueError, match="expected as many losses of both, got 1 and 2"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected at least one value, got none"):
        median([])


@pytest.mark.parametrize("best", [1e-3, 3e-2, 1.1e-5, 100.0])
def test_the_grid_goes_on_while_its_end_is_best(best):
    known = Known(lambda run: abs(math.log(run.lr / best)) + (5.0 if run.seed < TUNING_SEED else 0.0))
    preset = Preset((Share("mlp", ("linear",), ("linear",), tuning_seeds=2),))
    plan = Plan(preset, known)
    lr = plan.tuned(preset.shares[0], "linear")
    tried = {run.lr for run in known.asked}
    assert {run.seed for run in known.asked} == {TUNING_SEED, TUNING_SEED + 1}
    grid = TASKS["mlp"].grid
    assert lr == min(tried, key=lambda x: abs(math.log(x / best)))
    more = {1e-3: (5.77e-4, 1.73e-3), 3e-2: (9e-2, 1.73e-2, 5.2e-2), 1.1e-5: (1.11e-5, 3.33e-5, 6.41e-6, 1.92e-5)}
    more[100.0] = (9e-2, 0.27, 0.156, 0.468)
    assert tried == {*grid, *more[best]} and len(tried) <= len(grid) + EXTENSIONS + 2
    assert [run.lr for run in plan.compared(preset.shares[0], "linear", 3.0)] == [times(lr, 3.0)] * 5


def test_a_run_that_the_noise_cannot_reach_is_not_repeated():
    assert {seen_as("noisy-loss", name) for name in STEP} == {"clean"}
    assert {seen_as("noisy-loss", name) for name in LOSS_DRIVEN} == {"noisy-loss"}
    assert {seen_as(name, "linear") for name in SCENARIOS if name != "noisy-loss"} == set(SCENARIOS) - {"noisy-loss"}
    done = Known(lambda run: run.lr)
    assert not list(Plan(PRESETS["quick"], done).missing())  # all planned runs are known


def test_every_schedule_is_one_and_starts_low_where_it_warms_up():
    context = Context(200, norms=[1.0 + t % 7 for t in range(200)])
    assert set(ABOUT) == {*STEP, *LOSS_DRIVEN}
    for name, make in SCHEDULES.items():
        schedule = make(context)
        base = schedule if name in STEP else schedule.base
        if base is None:
            assert LossSpec(schedule, [1e-3]).observe(1.0) and name in LOSS_DRIVEN
        else:
            assert base.curve()[0] < 0.05 and max(base.curve()) == 1.0
    with pytest.raises(ValueError, match="expected the norms .*, got none"):
        SCHEDULES["refined"](Context(200))


def test_the_large_model_is_as_large_as_it_is_called():
    assert 123e6 < TASKS["gpt2-124m"].parameters() < 125e6
    shares = PRESETS["standard"].only(("gpt2-124m", "mlp")).shares
    assert [(share.task, share.schedules) for share in shares] == [("gpt2-124m", FEW), ("mlp", ALL)]
    with pytest.raises(SystemExit, match="needs a GPU"):
        convergence.main(["--tasks", "gpt2-124m"])
    with pytest.raises(SystemExit, match="expected mlp.*, got mpl"):
        convergence.main(["--tasks", "mlp,mpl"])


@pytest.mark.parametrize("task", ["mlp", "gpt-tiny", "finetune"])
def test_a_scenario_changes_what_it_says_and_nothing_else(task):
    steps, start = 20, None
    if task == "finetune":
        start = TASKS["gpt-tiny"].make(Setting(steps, 9, "clean", CPU)).model.state_dict()
    made = {name: TASKS[task].make(Setting(steps, 3, name, CPU, start)) for name in ("clean", *SCENARIOS)}
    states = [list(trainee.model.state_dict().values()) for trainee in made.values()]
    assert all(torch.equal(a, b) for state in states for a, b in zip(state, states[0], strict=True))
    other = TASKS[task].make(Setting(steps, 4, "clean", CPU, start))
    batches = {name: [trainee.batch(step) for step in range(steps)] for name, trainee in made.items()}
    inputs = {name: torch.stack([x for x, _ in own]) for name, own in batches.items() if name != "small-batch"}
    targets = {name: torch.stack([y for _, y in own]) for name, own in batches.items() if name != "small-batch"}
    half = steps // 2
    for name, own in inputs.items():
        assert torch.equal(own[:half], inputs["clean"][:half])
        assert torch.equal(own, inputs["clean"]) or (name == "shift" and task != "mlp")
    assert not torch.equal(other.batch(0)[0], batches["clean"][0][0])
    assert len(batches["small-batch"][0][0]) == max(1, len(batches["clean"][0][0]) // 8)
    assert torch.equal(targets["noisy-loss"], targets["clean"])
    assert torch.equal(targets["shift"][:half], targets["clean"][:half])
    assert not torch.equal(targets["shift"][half:], targets["clean"][half:])
    wrong = (targets["label-noise"] != targets["clean"]).double().mean()
    assert 0 < wrong < 2 * LABEL_NOISE["digits" if task == "mlp" else "text"]
    before, after = made["shift"].test(half - 1), made["shift"].test(half)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before, made["clean"].test(0), strict=True))
    assert not torch.equal(before[0][1], after[0][1])


def test_a_run_is_the_same_each_time_and_says_when_it_failed():
    run = Run("mlp", "greedy-linear", 1e-2, 0, "noisy-loss", 40)
    first, again = (training.execute(run, CPU, None, None) for _ in range(2))
    assert first.pop("seconds") and again.pop("seconds") and first == again
    assert first["failed"] is None and first["final"] < first["curve"][0][1]
    assert [step for step, _ in first["curve"]] == [0, *range(4, 40, 4), 38, 39, 40] and first["lrs"][0][0] == 1
    clean = training.execute(Run("mlp", "greedy-linear", 1e-2, 0, "clean", 40), CPU, None, None)
    assert clean["lrs"] != first["lrs"]  # the schedule saw the noise
    broken = training.execute(Run("mlp", "constant", 1e30, 0, "clean", 40), CPU, None, None)
    assert broken["final"] is None and "was not finite by step" in broken["failed"]
    wild = training.execute(Run("mlp", "constant", 30.0, 0, "clean", 40), CPU, None, None)
    assert wild["failed"] == "worse than before the first step" and wild["final"] > wild["curve"][0][1]
    norms = training.execute(Run("mlp", "linear", 1e-2, 0, "norms", 40), CPU, None, None)["norms"]
    assert len(norms) == 40 and all(norm > 0 for norm in norms)


def test_a_cut_run_goes_on_where_it_was(tmp_path, monkeypatch):
    """In this process instead of a pool, cut after each of some runs and in the middle of a line."""
    said = []

    class Here:
        def __init__(self, *_, **__): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def submit(self, function, *arguments):
            future = runner.Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(runner, "ProcessPoolExecutor", Here)
    path = tmp_path / "results.jsonl"
    preset = Preset((Share("mlp", ("linear", "refined", "greedy-linear"), tuning_seeds=1, seeds=2),), length=0.01)

    def go_on(stop_after, commit="a", mix=False):
        def say(line):
            said.append(line)
            if len(said) == stop_after:
                raise KeyboardInterrupt

        results = Results(path, commit, mix)
        options = dict(device=CPU, folder=tmp_path, processes=2, minutes=10.0, say=say)
        return runner.run_all(Plan(preset, results), results, **options)

    for stop in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            go_on(stop)
    with path.open("a") as file:
        file.write('{"task":"mlp","sch')
    go_on(None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [tuple(record[name] for name in ("task", "schedule", "lr", "seed", "scenario")) for record in lines]
    assert len(set(keys)) == len(keys) and [key[4] for key in keys].count("norms") == 1
    assert {key[1] for key in keys if key[3] == 1} == {"linear", "refined", "greedy-linear"}
    assert go_on(None) == 0 and len(path.read_text().splitlines()) == len(lines)
    with pytest.raises(
        ValueError, match="expected runs of this commit, b, got ones of commit a; go on from a checkout"
    ):
        go_on(None, "b")
    assert go_on(None, "b", mix=True) == 0
    path.write_text('{"task":"mlp"}\n' + path.read_text())
    with pytest.raises(ValueError, match="line 1: KeyError.*drop that line"):
        Results(path)


def test_the_quick_preset_ends_in_a_report(tmp_path, capsys, monkeypatch):
    """The command with a process of its own for the runs; and pictures only where matplotlib is."""
    assert convergence.main(["--preset", "quick", "--processes", "1", "--out", str(tmp_path)]) == 0
    assert "42 runs done, 0 can begin\n" in capsys.readouterr().err
    assert convergence.main(["--preset", "quick", "--list", "--out", str(tmp_path)]) == 0
    assert "0 runs can begin; 42 are done" in capsys.readouterr().out
    results = Results(tmp_path / "results.jsonl")
    paths = write_report(tmp_path, Plan(PRESETS["quick"], results))
    text = paths[0].read_text()
    for expected in ("| greedy-linear |", "### mlp: an MLP on digits", "label-noise", "None are written yet", "26,122"):
        assert expected in text
    assert all(path.stat().st_size > 1000 for path in paths)
    assert {line.count("|") for line in text.splitlines() if line.startswith("| better-tie-worse")} == {11}
    (tmp_path / "CONCLUSIONS.md").write_text("It was worth it.\n")
    monkeypatch.setattr(pictures, "draw", lambda *_: [])
    assert "It was worth it." in write_report(tmp_path, Plan(PRESETS["quick"], results))[0].read_text()
    with pytest.raises(FileNotFoundError, match="run without --report first"):
        write_report(tmp_path / "nothing", Plan(PRESETS["quick"], Results(tmp_path / "nothing")))


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(
        SystemExit, match="expected a folder with results.jsonl in it, got .*; give the folder of a run"
    ):
        convergence.main(["--report", "--out", str(tmp_path)])
