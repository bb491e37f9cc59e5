"""What a search refuses, and what it needs."""

import importlib.util
import math
import subprocess
import sys

import pytest

from greedylr_fused.autolrs import AutoLRS, run
from greedylr_fused.autolrs.candidates import first

SMALL = dict(trial_steps=5, stage_steps=20, max_stage_steps=40, trials=2, total_steps=30)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(min_lr=0.0), ValueError, "expected 0 < min_lr < max_lr < inf, got 0.0 and 0.01"),
        (dict(max_lr=1e-4), ValueError, "expected 0 < min_lr < max_lr < inf"),
        (dict(max_lr=math.inf), ValueError, "expected 0 < min_lr < max_lr < inf"),
        (dict(min_lr=math.nan), ValueError, "expected 0 < min_lr < max_lr < inf"),
        (dict(max_lr="1e-2"), TypeError, "max_lr: expected a number, got '1e-2'"),
        (dict(trial_steps=3), ValueError, "trial_steps: expected an int >= 4, got 3"),
        (dict(trials=True), TypeError, "trials: expected an int, got True"),
        (dict(stage_steps=10.0), TypeError, "stage_steps: expected an int, got 10.0"),
        (dict(max_stage_steps=0), ValueError, "max_stage_steps: expected an int >= 1, got 0"),
        (dict(seed=-1), ValueError, "seed: expected an int >= 0, got -1"),
        (dict(seed=2**32), ValueError, "seed: expected an int below"),
        (dict(total_steps=29), ValueError, "total_steps: expected an int >= 30, got 29; write total_steps=30"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error) as raised:
        AutoLRS(**dict(min_lr=1e-4, max_lr=1e-2, **SMALL) | options)
    assert message in str(raised.value)


def test_reports_of_what_was_not_asked_for():
    tuned = AutoLRS(1e-4, 1e-2, **SMALL)
    with pytest.raises(RuntimeError, match=r'tell: expected done\(\), since no losses were asked for by "save"'):
        tuned.tell([1.0])
    with pytest.raises(ValueError, match=r'done: expected no steps at "save", got 2'):
        tuned.done(2)
    tuned.done()
    with pytest.raises(RuntimeError, match=r"done: expected tell\(losses\)"):
        tuned.done(1)
    for count in (0, 6):
        with pytest.raises(ValueError, match=rf'expected 1 to 5 at "train", got {count}'):
            tuned.tell([1.0] * count)
    assert tuned.search_steps == 0 and tuned.ask().steps == 5


def test_a_loop_is_driven_to_its_end():
    kept, here, made = [], [0.0], []

    def train(lr, steps):
        steps = min(steps, 3)  # fewer than asked for
        made.extend([lr] * steps)
        here[0] += steps * lr
        return [2 - here[0] * step for step in range(steps)]

    tuned = AutoLRS(1e-4, 1e-2, **SMALL)
    run(
        tuned,
        save=lambda: kept.append(here[0]),
        restore=lambda: here.__setitem__(0, kept[-1]),
        train=train,
        evaluate=lambda: 1.0,
    )
    assert len(made) == 30 and kept == [0.0] and tuned.stages[0]["lr"] == made[-1]
    assert here[0] == pytest.approx(20 * made[-1]), "trials were undone"
    assert made[0] == first(1e-4, 1e-2, "0 1")


def test_a_search_without_an_end_does_not_run():
    with pytest.raises(ValueError, match="expected a search with an end"):
        run(AutoLRS(1e-4, 1e-2), save=None, restore=None, train=None, evaluate=None)


@pytest.mark.parametrize("missing", ["scipy", "sklearn"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(ImportError, match=rf"got no module {missing}; run: pip install greedylr_fused\[autolrs\]"):
        AutoLRS(1e-4, 1e-2)


def test_nothing_of_the_extra_is_imported_before_it_is_needed():
    source = "import sys, greedylr_fused.autolrs as a; a.AutoLRS(1e-4, 1e-2).ask()\n"
    source += "print({'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stdout + done.stderr
