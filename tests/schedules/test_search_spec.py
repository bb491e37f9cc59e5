"""The specification of the level searches: golden traces, what holds in every run, and the options."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import second_search
from support.searches import BASE, decisions, golden, hexadecimal, random_config, random_losses, random_runs, rows, take

from greedylr_fused import WSD, Constant, Cosine, Linear
from greedylr_fused.schedules import AdaLRS, Backup, Climb, Event, Kind, Phase, SearchSpec, Skip


@pytest.mark.parametrize("name", golden())
def test_golden(name):
    case = golden()[name]
    found, digest = decisions(rows(SearchSpec(case["config"]), case["losses"]))
    assert found == case["decisions"]
    assert digest == case["digest"], "a statistic differs in its last bits"


@given(st.integers(0, 2**32))
def test_a_second_program_of_the_same_rules_has_the_same_bits(seed):
    rng = random.Random(seed)
    config, losses = random_config(rng), random_losses(rng)
    assert rows(SearchSpec(config), losses) == hexadecimal(second_search.Run(config, losses).rows)


@given(st.integers(0, 2**32))
def test_what_holds_in_every_run(seed):
    rng = random.Random(seed)
    config = random_config(rng)
    spec, plan = SearchSpec(config), config.windows
    low, high = config.levels
    taken, trial, total, frozen_at = False, 0, 0, None
    for loss in random_losses(rng):
        before = (spec.phase, spec.level)
        multiplier = take(spec, loss)
        assert low <= spec.level <= high and 0.0 < multiplier <= max(high, 1.0)
        assert (spec.backup is Backup.TAKE) == (spec.phase is Phase.TRIAL and spec.window_step == 0)
        if spec.backup is Backup.TAKE:
            assert not taken or config.kind is Kind.ADALRS, "two backups, and none put back"
            taken = True
        if spec.backup is Backup.PUT_BACK:
            assert taken and before[0] is Phase.TRIAL
            taken = False
        trial = trial + 1 if spec.phase is Phase.TRIAL else 0
        assert trial <= plan.length, "a trial that does not end"
        total += spec.phase is Phase.TRIAL
        if before[0] is Phase.FROZEN:
            assert (spec.phase, spec.level, multiplier) == (*before, before[1])
            assert spec.backup is Backup.NONE and spec.event is Event.NONE
        elif spec.phase is Phase.FROZEN:
            frozen_at = spec.step
        if spec.phase in (Phase.TRIAL, Phase.CONTROL) and config.kind is Kind.ADALRS:
            assert spec.step - spec.window_step + plan.length <= plan.until, "no window ends too late"
    assert spec.phase is Phase.FROZEN or spec.step < plan.until
    assert frozen_at is None or frozen_at <= max(plan.until, plan.begin)
    assert total <= plan.until


def test_the_random_runs_reach_every_decision():
    events, backups = Counter(), Counter()
    for config, losses in random_runs(1, 150):
        spec = SearchSpec(config)
        for loss in losses:
            tried = spec.phase is Phase.TRIAL
            take(spec, loss)
            events[config.kind, spec.event] += 1
            backups["skipped" if loss is None and tried else "failed" if tried and not math.isfinite(loss) else ""] += 1
    for kind in (Kind.CLIMB, Kind.ADALRS):
        for event in (Event.RAISE, Event.TRY, Event.BACK, Event.FREEZE, *([Event.CUT] if kind is Kind.ADALRS else [])):
            assert events[kind, event] >= 10, (kind, event)
    assert backups["skipped"] >= 10 and backups["failed"] >= 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("name", ["climb, raises to the top", "adalrs, small"])
def test_a_trial_that_breaks_is_put_back_at_once(name, bad):
    case = golden()[name]
    spec = SearchSpec(case["config"])
    for loss in case["losses"]:
        take(spec, loss)
        if spec.phase is Phase.TRIAL and spec.window_step == 2:
            break
    step = spec.step
    take(spec, bad)
    assert spec.backup is Backup.PUT_BACK and spec.phase is Phase.CONTROL and spec.window_step == 0
    assert spec.step == step + (bad is not None) and math.isnan(spec.kept)


def test_the_level_is_raised_where_time_is_up_below_the_starting_lr():
    case = golden()["climb, until too early"]
    spec = SearchSpec(case["config"])
    events = [(take(spec, loss), spec.event)[1] for loss in case["losses"]]
    assert spec.level == 1.0 and events.count(Event.RAISE) == 1 and Event.FREEZE not in events


@pytest.mark.parametrize(("speed", "level"), [(1.01, 3.0), (0.99, 1.0), (-0.99, 1.0), (-1.01, 0.5)])
def test_the_error_of_a_trial_is_the_root_mean_square_of_both(speed, level):
    spec = SearchSpec(AdaLRS(base=BASE, z=2.0))
    spec.phase, spec.trial_level, spec.kept, spec.kept_var = Phase.TRIAL, 3.0, 0.0, 0.1
    spec._judge_trial(speed, 0.4)
    assert spec.level == level


def searched(config, loss_of):
    """The search after a run whose losses are a function of the phase and the step of its window, with some noise."""
    spec = SearchSpec(config)
    for step in range(config.base.total_steps):
        spec.observe(loss_of(spec.phase, spec.window_step, spec.trial_level) + 0.01 * (step * 7 % 5 - 2))
    return spec


@pytest.mark.parametrize("by", [1.1, 1.5, 10.0, 1e30])
def test_a_trial_that_explodes_loses_however_much_its_losses_scatter(by):
    config = Climb(base=Linear(1000, warmup_steps=50))
    tail = config.windows.settle
    spec = searched(config, lambda phase, at, _: 2.0 * by ** max(0, at - tail) if phase is Phase.TRIAL else 2.0)
    assert spec.phase is Phase.FROZEN and spec.level == config.start


@pytest.mark.parametrize("spike", [3.0, 1e6, 1e99])
def test_one_spike_in_one_trial_does_not_end_the_search_below_the_starting_lr(spike):
    spiked = []

    def loss(phase, at, _):
        if phase is Phase.TRIAL and at == 27 and not spiked:
            spiked.append(at)
            return spike
        return 2.0

    assert searched(Climb(base=Linear(1000, warmup_steps=50)), loss).level >= 1.0 and spiked


@pytest.mark.parametrize(("worse", "level"), [(1.0, 1 / 3), (math.nan, 1 / 3), (0.0, 1.0), (-1.0, 1.0)])
def test_where_there_is_time_for_one_trial_it_decides(worse, level):
    config = Climb(base=Linear(150, warmup_steps=8))
    spec = searched(config, lambda phase, at, _: 2.0 + (worse if phase is Phase.TRIAL else 0.0))
    assert spec.phase is Phase.FROZEN and spec.level == level


@pytest.mark.parametrize("z", [0.0, 2.0])
def test_equal_losses_are_no_word_against_the_starting_lr_and_none_for_a_higher_one(z):
    spec = SearchSpec(Climb(base=Linear(1000, warmup_steps=50), z=z))
    for _ in range(1000):
        spec.observe(2.5)
    assert spec.phase is Phase.FROZEN and spec.level == 1.0


def test_a_loss_whose_square_overflows_is_as_one_that_is_not_finite():
    config = Climb(base=Linear(1000, warmup_steps=50), start=1.0)
    spec = searched(config, lambda phase, at, _: 1e160 if phase is Phase.CONTROL and at == 25 else 2.0)
    assert spec.level == 1.0, "a control that broke off is no proof for its trial"


@pytest.mark.parametrize(
    ("slopes", "level"),
    [((-1.0, 0.5, 0.6), 0.5), ((-1.0, 0.5, 0.2), 0.5), ((-1.0, 0.5, -0.1), 3.0), ((-1.0, -0.5, 0.1, 0.1), 0.5)],
)
def test_two_windows_in_turn_in_which_the_loss_rises_cut_the_level_be_one_a_trial(slopes, level):
    config = AdaLRS(base=Linear(1000), z=2.0)
    spec, loss = SearchSpec(config), 100.0
    spec.worst = math.inf  # no loss is above all before
    rises = iter(slopes)
    while spec.step < config.windows.begin + len(slopes) * config.windows.length:
        if spec.window_step == 0 and spec.phase is not Phase.WAIT:
            slope = next(rises)
        loss += slope if spec.phase is not Phase.WAIT else 0.0
        spec.observe(loss + 0.01 * (spec.step % 2))
    assert spec.level == level


def test_no_trial_where_the_level_cannot_rise():
    spec = SearchSpec(AdaLRS(base=BASE, high=1.0))
    for step in range(BASE.total_steps):
        spec.observe(2.0 + 3.0 * math.exp(-step / 60))
        assert spec.phase is not Phase.TRIAL and spec.level == 1.0


def test_windows_are_shares_of_the_run():
    plan = Climb(base=Cosine(10_000, warmup_steps=500)).windows
    assert (plan.length, plan.settle, plan.anneal, plan.begin, plan.until) == (300, 200, 300, 500, 4000)
    plan = AdaLRS(base=WSD(10_000, decay_steps=1000)).windows
    assert (plan.length, plan.settle, plan.anneal, plan.begin, plan.until) == (400, 0, 0, 1000, 4000)
    assert Climb(base=Linear(10_000)).windows.begin == 1, "the first step makes the state that is copied"


def test_a_run_without_room_is_refused_with_the_least_that_has_it():
    with pytest.raises(ValueError, match=r"Climb until: expected room for a round.*write total_steps=(\d+)") as e:
        Climb(base=Linear(50, warmup_steps=3))
    least = int(str(e.value).split("total_steps=")[1].split()[0])
    Climb(base=Linear(least, warmup_steps=3))
    with pytest.raises(ValueError, match="until"):
        Climb(base=Linear(least - 1, warmup_steps=3))
    with pytest.raises(ValueError, match="write a smaller window or begin, or larger until"):
        Climb(base=Linear(1000), begin=0.5)


@pytest.mark.parametrize("kind", [Climb, AdaLRS])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(base=None), TypeError, "base: expected a step schedule, got None"),
        (dict(base=Constant(warmup_steps=9)), ValueError, "base: expected a step schedule that ends"),
        (dict(base=WSD(warmup_steps=9)), ValueError, "base: expected a step schedule that ends"),
        (dict(window=2.0), ValueError, "window: expected a share of the run"),
        (dict(until=-0.1), ValueError, "until: expected a share of the run"),
        (dict(begin=7.0), ValueError, "begin: expected a share of the run"),
        (dict(min_window=2), ValueError, "min_window: expected a whole number"),
        (dict(z=-1.0), ValueError, "z: expected z >= 0"),
        (dict(z="2"), TypeError, "z: expected a number"),
    ],
)
def test_bad_options(kind, options, error, words):
    with pytest.raises(error, match=f"{kind.__name__} {words}") as caught:
        kind(**{"base": BASE, **options})
    assert len(str(caught.value).split()) <= 40


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Climb, dict(factor=1.0)), (Climb, dict(top=0.5)), (Climb, dict(start=0.0)), (Climb, dict(start=10.0))]
    + [(Climb, dict(anneal=1.1)), (Climb, dict(tail=-1.0)), (AdaLRS, dict(up=0.5))]
    + [(AdaLRS, dict(down=0.5)), (AdaLRS, dict(decay=0.0)), (AdaLRS, dict(low=0.0)), (AdaLRS, dict(high=0.5))],
)
def test_bad_options_of_one_kind(kind, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{kind.__name__} {name}: expected "):
        kind(base=Linear(1000), **options)


def test_a_window_may_end_in_the_last_step_of_the_search():
    config = Climb(base=Linear(102))
    assert config.windows.begin + 2 * config.windows.length == config.windows.until
    spec = SearchSpec(config)
    spec.observe(2.0)
    assert spec.phase is Phase.TRIAL
    with pytest.raises(ValueError, match="expected room for a round"):
        Climb(base=Linear(102, warmup_steps=2))


def test_a_loss_as_high_as_the_worst_is_not_above_all_before():
    for loss, phase in ((5.0, Phase.TRIAL), (math.nextafter(5.0, 6.0), Phase.CONTROL)):
        spec = SearchSpec(AdaLRS(base=BASE))
        spec.phase, spec.worst = Phase.TRIAL, 5.0
        spec.observe(loss)
        assert spec.phase is phase


def test_a_level_that_is_the_starting_lr_but_for_its_rounding_needs_no_proof():
    level = start = 1.0 / 1.1**6
    for _ in range(6):
        level *= 1.1
    assert level > 1.0
    spec = SearchSpec(Climb(base=Linear(10_000, warmup_steps=50), window=0.01, start=start, factor=1.1))
    for _ in range(10_000):
        spec.observe(2.5)
    assert spec.level == level


def test_one_loss_has_no_error():
    spec = SearchSpec(Climb(base=Linear(1000, warmup_steps=50), start=1.0))
    while spec.phase is not Phase.FROZEN:
        alone = spec.phase is Phase.CONTROL and spec.window_step != spec.windows.length - 1
        spec.observe(math.nan if alone else 2.0 if spec.phase is Phase.TRIAL else 9.0)
    assert spec.level == 1.0, "it was no proof for the trial"


def test_a_spike_in_a_trial_is_no_verdict():
    spec = SearchSpec(Climb(base=BASE, min_window=8))
    while spec.phase is not Phase.TRIAL:
        spec.observe(2.0)
    before = rows(spec, [])
    spec.skip(Skip.SPIKE)
    assert spec.backup is Backup.NONE and rows(spec, [])[0][1:] == before[0][1:]
