"""The preset `find` of benchmarks/convergence.py: its runs, its spikes, its searches. No conclusion is tested."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.evidence import searched, training
from benchmarks.evidence.finders import FINDERS, lr_of, options_of, schedule_of
from benchmarks.evidence.hosted import Hosted
from benchmarks.evidence.plan import TUNING_SEED, Plan, Run, times
from benchmarks.evidence.presets import FIND, PRESETS, Preset, Share
from benchmarks.evidence.schedules import SCHEDULES, Context
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainees import GARBAGE_FROM, Setting
from greedylr_fused import FusedAdamW, Linear

CPU = torch.device("cpu")


class Known:
    """All runs, with a made-up loss that is best at 0.003."""

    def get(self, run):
        return {"final": abs(math.log(run.lr / 3e-3)), "failed": None}


def planned(share):
    plan = Plan(Preset((share,)), Known())
    return plan, {name: plan.compared(share, name, factor=3.0) for name in share.schedules}


def test_a_finder_has_the_lr_it_is_given_or_its_own():
    plan, runs = planned(Share("mlp", FIND, FIND, seeds=2, first_seed=100))
    share = plan.preset.shares[0]
    tuned = plan.tuned(share, "linear")
    assert tuned == 3e-3 and plan.tuning(share, "mechanic-linear") == ([], 1.0)
    for name, own in runs.items():
        lr = 1.0 if name == "mechanic-linear" else tuned
        assert [(run.lr, run.seed) for run in own] == [(times(lr, 3.0), 100), (times(lr, 3.0), 101)]
    assert plan.tuning(share, "autolrs") == plan.tuning(share, "linear")
    assert plan.tuned(share, "linear skip-spikes") == tuned


def test_disturbed_pairs_are_run_at_the_tuned_lr_and_no_others():
    share = Share("mlp", ("linear",), disturbed=(("spikes", "linear"), ("shift", "mechanic-linear")), seeds=2)

    class Nothing:
        def get(self, run):
            return Known().get(run) if run.seed >= TUNING_SEED else None

    runs = [run for run in Plan(Preset((share,)), Nothing()).missing() if run.seed < TUNING_SEED]
    assert [(run.scenario, run.schedule, run.lr) for run in runs] == [
        *[("clean", "linear", 3e-3)] * 2,
        *[("spikes", "linear", 3e-3)] * 2,
        *[("shift", "mechanic-linear", 1.0)] * 2,
    ]


def test_the_preset_names_what_there_is_and_its_seeds_are_fresh():
    for share in PRESETS["find"].shares:
        named = {*share.schedules, *share.third, *share.tenth, *share.ablations, *(name for _, name in share.disturbed)}
        assert named <= {*SCHEDULES, *FINDERS} and share.first_seed >= 100 and share.seeds >= 5
        assert share.first_seed + share.seeds < TUNING_SEED


@pytest.mark.parametrize("name", FINDERS)
def test_every_finder_trains_and_repeats_to_the_bit(name):
    run = Run("mlp", name, 1.0 if "mechanic" in name else 3e-3, 100, "spikes", 200)
    first, again = (training.execute(run, CPU, None, None) for _ in range(2))
    assert first.pop("seconds") and again.pop("seconds") and first == again
    assert first["failed"] is None and first["curve"][-1][0] == 200


@pytest.mark.parametrize("name", ["climb", "adalrs"])
def test_a_search_on_the_host_has_the_bits_of_the_device(monkeypatch, name):
    monkeypatch.setitem(FINDERS, "hosted", replace(FINDERS[name], hosted=Hosted()))
    device, host = (
        training.execute(Run("mlp", own, 1e-2, 7, "clean", 400), CPU, None, None) for own in (name, "hosted")
    )
    assert (device["curve"], device["train"]) == (host["curve"], host["train"])


@pytest.mark.parametrize(("name", "plain"), [("climb replay", "climb"), ("adalrs trigger=always", "adalrs")])
def test_a_variant_on_the_host_trains_otherwise(name, plain):
    one, other = (training.execute(Run("mlp", own, 1e-2, 7, "clean", 400), CPU, None, None) for own in (name, plain))
    assert one["train"] != other["train"]


def test_a_finder_differs_from_its_schedule_by_its_options_alone():
    context = Context(100)
    assert isinstance(schedule_of("mechanic-linear", context), Linear) and "tuner" in options_of("mechanic-linear")
    assert schedule_of("autolrs", context) is None and options_of("linear") == options_of("autolrs") == {}
    assert options_of("greedy-wsd skip-spikes").keys() == {"skip_spikes"}
    assert lr_of("greedy-linear window=0") == "greedy-linear" and lr_of("mechanic-linear") == 1.0


@pytest.mark.parametrize("task", ["mlp", "gpt-tiny"])
def test_spikes_are_few_late_and_the_same_for_all(task):
    steps = 300
    made = {name: TASKS[task].make(Setting(steps, 3, name, CPU)) for name in ("clean", "spikes")}
    again = TASKS[task].make(Setting(steps, 3, "spikes", CPU))
    hit = []
    for step in range(steps):
        (inputs, right), (same, targets) = made["clean"].batch(step), made["spikes"].batch(step)
        assert torch.equal(inputs, same) and torch.equal(again.batch(step)[1], targets)
        if not torch.equal(right, targets):
            hit.append(step)
            assert (right != targets).double().mean() > 0.5
    assert 0 < len(hit) < 0.03 * steps and min(hit) >= GARBAGE_FROM * steps


def test_skipping_spikes_changes_a_run_with_spikes():
    with_spikes, without = (
        training.execute(Run("mlp", name, 3e-3, 103, "spikes", 600), CPU, None, None)["final"]
        for name in ("linear", "linear skip-spikes")
    )
    assert with_spikes != without


def test_a_search_has_the_steps_of_all_and_gives_trials_back():
    """Of 100 steps 5 are the warm-up and 10 trials of 4 are undone; the 55 others train, from the state before them."""
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = FusedAdamW(model.parameters(), lr=1.0)
    kept, counts = [], []

    def one():
        loss = model(torch.ones(1, 2)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        (param,) = model.parameters()
        kept.append((optimizer.read_lr()[0], param.detach().clone()))
        counts.append(int(optimizer.state_dict()["state"][0]["step"]))
        return loss.detach()

    found = searched.search(1e-2, 95, seed=0)
    searched.train(model, optimizer, found, 1e-2, 5, one)
    assert [lr for lr, _ in kept[:5]] == pytest.approx([2e-3 * n for n in range(1, 6)])
    assert len(kept) == 100 and found.search_steps == 40 and found.training_steps == 55
    assert counts == [*range(1, 6), *[6, 7, 8, 9] * 10, *range(6, 61)]
    assert all(1e-3 <= lr <= 1e-1 for lr, _ in kept[5:]) and len({lr for lr, _ in kept[5:]}) == 10
