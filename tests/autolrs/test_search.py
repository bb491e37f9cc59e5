"""The search against losses that are made up: stages, trials, what failed, the budget, resuming anywhere."""

import json
import math

import pytest

from greedylr_fused.autolrs import Action, AutoLRS, candidates, search

LOW, HIGH = 1e-4, 1e-2
SMALL = dict(trial_steps=5, stage_steps=20, max_stage_steps=40, trials=3)


@pytest.fixture
def in_turn(monkeypatch):
    """LRs in turn instead of those of a Gaussian process, which takes a tenth of a second."""

    def following(told, low, high, seed):
        return low * (len(told) + 1), told

    monkeypatch.setattr(candidates, "first", lambda low, high, seed: low)
    monkeypatch.setattr(candidates, "following", following)


@pytest.fixture
def forecasts(monkeypatch):
    """Each forecast is the last loss; the arguments of all."""
    asked = []

    def foresee(losses, at, *, validation):
        asked.append((len(losses), at, validation))
        return losses[-1]

    monkeypatch.setattr(search, "forecast", foresee)
    return asked


class Loop:
    """A training loop whose loss falls by the step, fastest at an LR of 2e-4."""

    def __init__(self, broken=()):
        self.step, self.kept, self.made, self.broken = 0, None, [], broken

    def loss(self, lr=0.0):
        if lr in self.broken:
            return math.nan
        return 3 + 2 * math.exp(-self.step / 20) + abs(math.log(lr / 2e-4)) if lr else 1 / (1 + self.step)

    def do(self, action):
        """Returns the losses."""
        self.made.append(action)
        if action.kind == "save":
            self.kept = self.step
        elif action.kind == "restore":
            self.step = self.kept
        elif action.kind == "evaluate":
            return [self.loss()]
        found = []
        for _ in range(action.steps):
            found.append(self.loss(action.lr))
            self.step += 1
        return found

    def drive(self, tuned, most=None):
        while (action := tuned.ask()).kind != "stop":
            assert tuned.ask() == action
            self.report(tuned, action, self.do(action))
            if most is not None and len(self.made) >= most:
                break
        return tuned

    @staticmethod
    def report(tuned, action, found):
        if action.losses:
            tuned.tell(found)
        else:
            tuned.done(action.steps)


def test_stages_are_those_of_the_paper(in_turn, forecasts):
    tuned, loop = AutoLRS(LOW, HIGH), Loop()
    for _ in range(6):
        stage = tuned.stage
        while tuned.stage == stage:
            action = tuned.ask()
            Loop.report(tuned, action, loop.do(action))
    expected = [(100, 1000, False), (200, 2000, False), (400, 4000, False), (800, 8000, False)]
    expected += [(800, 8000, True)] * 2
    found = [(each["trial_steps"], each["stage_steps"], each["validation"]) for each in tuned.stages]
    assert found == expected
    # A validation loss every 50 steps: the position of step 8000 in units of that.
    per_stage = [
        (min(trial, 100), 1000, False) if trial == 100 else (trial, 10 * trial, False) for trial, _, _ in found
    ]
    per_stage[4:] = [(16, 160, True)] * 2
    assert forecasts == [each for each in per_stage for _ in range(10)]
    assert tuned.training_steps == tuned.search_steps == 31_000 == loop.step
    assert [len(each["tried"]) for each in tuned.stages] == [10] * 6


def test_a_stage_is_trials_from_one_state_and_the_best_of_them(in_turn, forecasts):
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=35), Loop()
    loop.drive(tuned)
    lrs = [LOW, 2 * LOW, 3 * LOW]
    trials = [
        (Action("train", lr, 5, losses=True), Action("restore", after))
        for lr, after in zip(lrs, [*lrs[1:], 2 * LOW], strict=True)
    ]
    assert loop.made == [Action("save", LOW), *sum(trials, ()), Action("train", 2 * LOW, 20)]
    assert tuned.ask() == Action("stop", 2 * LOW)
    (record,) = tuned.stages
    assert record["lr"] == 2 * LOW and [lr for lr, _ in record["tried"]] == lrs and record["step"] == 15
    assert (tuned.search_steps, tuned.training_steps, loop.step) == (15, 20, 20)
    assert min(record["tried"], key=lambda pair: pair[1])[0] == 2 * LOW


def test_trial_and_stage_are_named_on_the_way(in_turn, forecasts):
    tuned, seen = AutoLRS(LOW, HIGH, **SMALL, total_steps=35), []
    loop = Loop()
    while (action := tuned.ask()).kind != "stop":
        seen.append((action.kind, tuned.stage, tuned.trial, len(tuned.tried)))
        Loop.report(tuned, action, loop.do(action))
    expected = [("save", 1, 1, 0)]
    for trial in (1, 2, 3):
        expected += [("train", 1, trial, trial - 1), ("restore", 1, trial + 1 if trial < 3 else None, trial)]
    assert seen == [*expected, ("train", 1, None, 3)]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_losses_may_be_told_in_parts(in_turn, forecasts, at_once):
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=200), Loop()
    whole = Loop().drive(AutoLRS(LOW, HIGH, **SMALL, total_steps=200))
    while (action := tuned.ask()).kind != "stop":
        part = Action(action.kind, action.lr, min(action.steps, at_once), action.losses)
        Loop.report(tuned, part, loop.do(part))
    assert tuned.state_dict() == whole.state_dict()
    assert any(each["validation"] for each in tuned.stages)


def test_a_search_goes_on_anywhere_to_the_same_decisions():
    """Saved and loaded through JSON after every action, and within trials and stages, with the Gaussian process."""
    options = dict(SMALL, total_steps=175, seed=3)
    straight, loop = Loop(), Loop()
    whole = straight.drive(AutoLRS(LOW, HIGH, **options))
    tuned = AutoLRS(LOW, HIGH, **options)
    while (action := tuned.ask()).kind != "stop":
        for _ in range(max(1, action.steps)):
            here = Action(action.kind, action.lr, min(action.steps, 1), action.losses)
            Loop.report(tuned, here, loop.do(here))
            state = json.loads(json.dumps(tuned.state_dict(), allow_nan=False))
            tuned = AutoLRS(LOW, HIGH, **options)
            tuned.load_state_dict(state)
            assert tuned.state_dict() == state
    assert tuned.state_dict() == whole.state_dict() and len(whole.stages) == 3
    assert whole.stages[-1]["validation"] and [len(dict(each["tried"])) for each in whole.stages] == [3, 3, 3]


def test_a_trial_ends_with_a_loss_that_is_not_finite(in_turn):
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=35), Loop(broken=(2 * LOW,))
    loop.drive(tuned)
    assert dict(tuned.stages[0]["tried"])[2 * LOW] == 1e6
    assert tuned.stages[0]["lr"] in (LOW, 3 * LOW)

    one = AutoLRS(LOW, HIGH, **SMALL, total_steps=35)
    one.done()
    one.tell([2.0, math.inf])
    assert one.tried == {LOW: 1e6} and one.search_steps == 2 and one.ask().kind == "restore"
    json.dumps(one.state_dict(), allow_nan=False)


def test_where_all_fail_the_smallest_lr_is_taken(in_turn):
    lrs = (LOW, 2 * LOW, 3 * LOW)
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=35), Loop(broken=lrs)
    loop.drive(tuned)
    assert tuned.stages[0]["lr"] == LOW and tuned.search_steps == 15
    assert tuned.training_steps == 20, "steps that failed count"


@pytest.mark.parametrize(
    "foreseen, told", [(math.nan, 1e6), (math.inf, 1e6), (1e300, 1e6), (-1e300, -1e6), (-3.0, -3.0)]
)
def test_forecasts_stay_numbers_whose_squares_are(in_turn, monkeypatch, foreseen, told):
    monkeypatch.setattr(search, "forecast", lambda *_, **__: foreseen)
    tuned = AutoLRS(LOW, HIGH, **SMALL)
    tuned.done()
    tuned.tell([2.0] * 5)
    assert tuned.tried == {LOW: told}


@pytest.mark.parametrize("highest, stands", [(4.99, False), (5.0, True), (6.0, True)])
def test_validation_losses_as_high_as_the_first_loss_of_all_are_not_extrapolated(in_turn, monkeypatch, highest, stands):
    monkeypatch.setattr(search, "forecast", lambda *_, **__: -1.0)
    tuned = AutoLRS(LOW, HIGH, trial_steps=4, stage_steps=8, max_stage_steps=8, trials=1)
    tuned.done()
    tuned.tell([5.0, 9.0, 1.0, 1.0])  # the first loss of all is 5
    for steps in (0, 8, 0):  # restored, trained, saved
        tuned.done(steps)
    for loss in (4.0, highest, 3.5, 3.25):
        assert tuned.ask() == Action("train", LOW, 1)
        tuned.done(1)
        tuned.tell([loss])
    assert tuned.tried == {LOW: 3.25 if stands else -1.0}


@pytest.mark.parametrize(
    "total, stages, last",
    [
        (35, 1, 20),  # one stage
        (69, 1, 54),  # another would not fit
        (70, 2, 20),  # it fits, but not doubled
        (105, 2, 40),  # doubled
        (175, 3, 40),  # and once more, now with validation losses
        (174, 2, 109),
    ],
)
def test_the_budget_is_used_up_and_no_stage_is_begun_that_does_not_fit(in_turn, forecasts, total, stages, last):
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=total), Loop()
    loop.drive(tuned)
    assert tuned.search_steps + tuned.training_steps == total == tuned.total_steps
    assert loop.step == tuned.training_steps and len(tuned.stages) == stages
    assert loop.made[-1] == Action("train", tuned.stages[-1]["lr"], last)


@pytest.mark.parametrize("made, stages", [(3, 3), (7, 3), (8, 2)])
def test_a_run_may_be_made_longer(in_turn, forecasts, made, stages):
    """In a trial, before the training, and when it was over: the stages that now fit are begun."""
    tuned, loop = AutoLRS(LOW, HIGH, **SMALL, total_steps=69), Loop()
    loop.drive(tuned, most=made)
    longer = AutoLRS(LOW, HIGH, **SMALL, total_steps=180)
    longer.load_state_dict(tuned.state_dict())
    loop.drive(longer)
    assert longer.search_steps + longer.training_steps == 180 and len(longer.stages) == stages


def test_other_options_other_states_and_shorter_runs_are_refused(in_turn):
    state = AutoLRS(LOW, HIGH, **SMALL, total_steps=100).state_dict()
    with pytest.raises(ValueError, match=r"AutoLRS seed: expected 0, as in the state, got 1; construct"):
        AutoLRS(LOW, HIGH, **SMALL, total_steps=100, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"total_steps: expected at least 100, as in the state, got 99"):
        AutoLRS(LOW, HIGH, **SMALL, total_steps=99).load_state_dict(state)
    endless = AutoLRS(LOW, HIGH, **SMALL)
    endless.load_state_dict(state)
    with pytest.raises(ValueError, match=r"expected at least None"):
        AutoLRS(LOW, HIGH, **SMALL, total_steps=99).load_state_dict(endless.state_dict())
    for damaged in ({}, None, state | {"progress": {}}, state | {"options": {"seed": 0}}):
        with pytest.raises(ValueError, match=r"expected what AutoLRS.state_dict\(\) returned"):
            AutoLRS(LOW, HIGH, **SMALL, total_steps=100).load_state_dict(damaged)
