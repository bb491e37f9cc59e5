"""The preset `state` of benchmarks/convergence.py: its statistics, its formats and conditions, its report."""

import json
import math

import pytest
import torch
from support.paths import ROOT

from benchmarks import convergence
from benchmarks.evidence import state_report, state_tables, training
from benchmarks.evidence.formats import CONDITIONS, FORMATS, OUTLIER, PLAIN, STORED
from benchmarks.evidence.plan import Plan, Run
from benchmarks.evidence.presets import PRESETS
from benchmarks.evidence.results import Results
from benchmarks.evidence.state_tables import Compared, States
from benchmarks.evidence.statistics import mean, student
from benchmarks.evidence.stored import Stored
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainees import Setting

CPU = torch.device("cpu")
STATE = PRESETS["state"]
NOBODYS = {name for name, form in FORMATS.items() if form.peer is None or form.peer[0].startswith("torch.")}


def trained(condition, name, task="mlp", steps=20):
    found = training.execute(Run(task, "linear", 1e-3, 1000, condition, steps, name), CPU, None, None)
    assert found["failed"] is None
    return found["final"]


@pytest.mark.parametrize(
    "level, degrees, expected", [(0.95, 1, 6.3138), (0.95, 4, 2.1318), (0.95, 7, 1.8946), (0.975, 15, 2.1314)]
)
def test_quantiles_are_those_of_the_tables(level, degrees, expected):
    assert math.isclose(student(level, degrees), expected, rel_tol=2e-4)


def test_the_bound_decides():
    found = mean([0.1, 0.2, 0.3, 0.2, 0.2])
    assert math.isclose(found.mean, 0.2) and math.isclose(found.deviation, math.sqrt(0.005))
    assert math.isclose(found.upper, 0.2 + 2.1318 * math.sqrt(0.001), rel_tol=1e-4)
    assert Compared(found, 0).verdict == "passed"
    assert Compared(mean([0.1, 0.2, 0.3, 0.2, 0.4]), 0).verdict == "failed"  # a mean of 0.24, a bound above 0.3
    assert Compared(mean([-9.0, -1.0, -5.0, -5.0, -5.0]), 0).verdict == "passed"  # better is no failure
    assert Compared(mean([0.0, 0.0, math.inf, 0.0, 0.0]), 1).verdict == "failed"
    assert Compared(mean([0.0] * 4), 0).verdict == "few" and mean([1.0]).upper == math.inf


def test_every_condition_has_float32_and_is_run_seed_by_seed():
    assert {condition for condition, name in STORED if name == "fp32"} == {condition for condition, _ in STORED}
    nothing = Results(convergence.STARTS / "there-is-none")
    runs = list(Plan(STATE, nothing).missing())
    first = STATE.shares[0]
    assert [(run.scenario, run.storage) for run in runs[: len(STORED)]] == list(STORED)
    assert {run.seed for run in runs[: len(STORED)]} == {0} and {run.task for run in runs[: len(STORED)]} == {
        first.task
    }
    more = sum(len(share.noisy) * (share.noisy_seeds - share.seeds) for share in STATE.shares if share.noisy)
    assert len(runs) == len(STORED) * sum(share.seeds for share in STATE.shares) + more and set(first.noisy) < set(
        STORED
    )
    assert min(share.seeds for share in STATE.shares) >= 5


def test_torch_around_the_same_run_is_ours_but_for_rounding():
    """Clipping, schedule and betas of a peer are those that ours has."""
    for task in ("gpt-tiny", "convnet-wide"):
        assert math.isclose(trained("worst", "fp32", task), trained("worst", "torch", task), rel_tol=1e-4)
        assert math.isclose(trained("beta2-0.95", "fp32", task), trained("beta2-0.95", "torch", task), rel_tol=1e-5)


def test_conditions_do_what_they_say_and_adamw_does_not_mind():
    plain = trained("beta2-0.95", "fp32")
    assert trained("beta2-0.999", "fp32") != plain
    for condition in ("small-gradients", "outlier"):  # an MLP is not clipped
        assert math.isclose(trained(condition, "fp32"), plain, rel_tol=1e-3)
    options = CONDITIONS["small-gradients"].options((0.9, 0.95), 1.0)
    assert options == {"betas": (0.9, 0.95), "eps": 1e-12, "max_grad_norm": 1e-4}
    assert PLAIN.options((0.9, 0.999), 2.0) == {"betas": (0.9, 0.999), "eps": 1e-8, "max_grad_norm": 2.0}
    both = [TASKS["mlp"].make(Setting(20, 0, "clean", CPU)) for _ in range(2)]
    CONDITIONS["worst"].disturb(both[1].model)
    for trainee in both:
        trainee.loss(*trainee.batch(0)).backward()
    for a, b in zip(*(trainee.model.parameters() for trainee in both), strict=True):
        factor = torch.ones_like(a)
        if a.dim() > 1:
            factor[:, 0] = OUTLIER
        assert torch.equal(b.grad, a.grad * factor)


@pytest.mark.parametrize("name", sorted(NOBODYS - {"torch"}))
def test_formats_are_what_they_are_called(name):
    trainee = TASKS["gpt-tiny"].make(Setting(20, 0, "clean", CPU))
    start = [param.detach().clone() for param in trainee.model.parameters()]
    form = FORMATS[name]
    run = Run("gpt-tiny", "linear", 1e-3, 0, "beta2-0.95", 20, name)
    trainee.model = training.model_of(form, trainee.model)
    optimizer = training._optimizer(trainee, run, training.Context(20))
    loss = trainee.loss(*trainee.batch(0))
    loss.backward()
    optimizer.step(loss=loss.detach())
    matrix = next(param for param in trainee.model.parameters() if param.dim() > 1)
    assert matrix.dtype == matrix.grad.dtype == form.param and loss.dtype == torch.float32
    kept = optimizer.state[matrix]
    remainder = form.options.get("master_weights")
    assert ("exp_avg_q" in kept) == ("8bit" in name) and str(getattr(kept.get("remainder"), "dtype", None)) == (
        f"torch.{remainder}" if remainder else "None"
    )
    if form.param == torch.bfloat16:
        assert isinstance(trainee.model, Stored) and torch.equal(matrix.float(), start[0].bfloat16().float())  # lr is 0


def test_lines_from_before_there_were_formats_are_float32(tmp_path):
    run = Run("mlp", "linear", 1e-3, 0, "clean", 20)
    results = Results(tmp_path / "results.jsonl", "a")
    results.add(run, {"final": 1.0})
    line = json.loads(results.path.read_text())
    assert line.pop("storage") == "fp32"
    results.path.write_text(json.dumps(line) + "\n")
    assert Results(results.path).get(run)["final"] == 1.0


def test_a_report_of_what_there_is(tmp_path, capsys):
    """Of made-up losses: float32 1, all others 0.1 % more, but one that broke off."""
    results = Results(tmp_path / "results.jsonl", "a")
    for run in Plan(STATE, results).missing():
        if run.seed < 6:
            final = None if run.storage == "bnb-8bit" else 1.0 + 0.001 * (run.storage != "fp32")
            results.add(run, {"final": final, "failed": None if final else "broke off", "seconds": 60.0})
    document = tmp_path / "page.md"
    document.write_text(
        f"before\n<!-- {state_report.MARKS}: written by benchmarks/markdown.py -->\n"
        f"<!-- end of {state_report.MARKS} -->\nafter\n"
    )
    asked = ["--preset", "state", "--report", "--out", str(tmp_path), "--into", str(document)]
    assert convergence.main(asked) == 0
    written = (tmp_path / "REPORT.md").read_text()
    table = state_tables.verdicts(States(Plan(STATE, results), results))
    assert table in written and table in document.read_text()
    rows = [line.split(" | ") for line in table.splitlines()]
    eight = next(row for row in rows if "float32 parameters, 8-bit moments" in row[0])
    assert eight[1].startswith("+0.10") and eight[2:4] == ["+0.10", "passed"]
    broken = next(row for row in rows if "bitsandbytes" in row[0])
    assert broken[1:4] == ["infinite (5)", "infinite", "failed (5 of 5 runs broke)"]


@pytest.mark.parametrize("document", ["benchmarks/RESULTS.md", "docs/choosing-state.md"])
def test_tables_in_documents_are_what_the_results_say(document):
    results = Results(ROOT / "benchmarks" / "results" / "state-cpu" / "results.jsonl")
    text = (ROOT / document).read_text()
    assert state_report.into(text, Plan(STATE, results), results) == text
