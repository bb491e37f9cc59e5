"""Raises, cuts and resets in the record are those that the schedule's specification makes, over random runs."""

import dataclasses
import math
import random

import pytest
import torch
from support.telemetry import give_gradients, recorded, step

from greedylr_fused import Constant, Cosine, FusedAdamW, GreedyLR, ReduceOnPlateau
from greedylr_fused.schedules.loss_spec import LossSpec

LRS = (0.01, 0.02)


class Telling(LossSpec):
    """The specification, and what it did as its state before and after shows."""

    def __init__(self, config, lrs):
        self.resets = 0
        super().__init__(config, lrs)

    def _start_over(self):
        super()._start_over()
        self.resets += 1

    def decision(self, loss):
        before, resets, best = list(self.lr), self.resets, self.best
        self.observe(loss)
        if self.resets > resets:
            cut = any(max(lr * self.config.factor, low) < lr for lr, low in zip(before, self.min_lr, strict=True))
            return "reset" if self.lr != before or self.best != best or cut else None
        if self.lr == before:
            return None
        return "raise" if any(new > old for new, old in zip(self.lr, before, strict=True)) else "cut"


def random_schedule(rng):
    base = rng.choice([None, None, Cosine(150, warmup_steps=10, min_lr_ratio=0.1), Constant(warmup_steps=5)])
    shared = dict(
        mode=rng.choice(["min", "max"]),
        factor=rng.choice([0.5, 0.8, 0.95]),
        patience=rng.choice([0, 0, 1, 3]),
        threshold=rng.choice([0.0, 1e-6, 0.05]),
        threshold_mode=rng.choice(["abs", "rel"]),
        cooldown=rng.choice([0, 0, 1, 4]),
        eps=rng.choice([0.0, 1e-8, 1e-3]),
        smooth=rng.choice([True, False]),
        window_size=rng.choice([1, 2, 5]),
        base=base,
        hold=base and base.warmup_steps,  # as by default, which the specification, without a base, does not know
    )
    if rng.random() < 0.25:
        return ReduceOnPlateau(**shared, min_lr=rng.choice([0.0, (0.002, 0.01)]))
    return GreedyLR(
        **shared,
        warmup=rng.choice([0, 0, 2]),
        reset_start=rng.choice([0, 1, 2, 3, 500]),
        forget_every=rng.choice([0, 0, 1, 4, 10]),
        compare=rng.choice(["best", "best", "previous"]),
        min_lr_ratio=rng.choice([0.1, 0.5, 1.0]),
        max_lr_ratio=rng.choice([1.0, 1.5, 10.0]),
    )


def random_losses(rng, count):
    """Better for a while, worse for a while, the same for a while, with some that are not finite."""
    loss, drift = 5.0, 0.0
    for _ in range(count):
        if rng.random() < 0.1:
            drift = rng.choice([-0.1, 0.0, 0.1])
        loss += drift + rng.choice([0.0, 0.02]) * rng.gauss(0, 1)
        yield rng.choice([math.nan, math.inf]) if rng.random() < 0.05 else loss


def parameters():
    return [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in LRS]


@pytest.mark.parametrize("seed", range(80))
def test_events_are_the_specifications_decisions(seed):
    """Also beside steps that are skipped, and steps whose losses weigh nothing."""
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    spec = Telling(schedule, LRS)
    opt = FusedAdamW(parameters(), schedule=schedule, skip_nonfinite=True)
    recorder, kept = recorded(opt, capacity=64)
    expected = []
    for loss in random_losses(rng, 150):
        kind = rng.random()
        if kind < 0.05:
            step(opt, loss, skip=True)
            expected.append(None)
        elif kind < 0.1:
            give_gradients(opt)
            opt.observe(loss, weight=0.0)
            opt.step()
            expected.append(None)
        else:
            step(opt, loss)
            expected.append(spec.decision(loss))
    recorder.close()
    assert [each.event for each in kept.steps] == expected
    assert opt._control.level.tolist() == spec.lr


def test_the_random_runs_have_all_that_may_happen():
    """That many of each, in all seeds together; otherwise the test above would say little."""
    counts = dict.fromkeys(["raise", "cut", "reset", None], 0)
    for seed in range(80):
        rng = random.Random(seed)
        spec = Telling(random_schedule(rng), LRS)
        for loss in random_losses(rng, 150):
            counts[spec.decision(loss)] += 1
    assert min(counts.values()) > 100, counts


@pytest.mark.parametrize("base", [None, Cosine(700, min_lr_ratio=0.1)], ids=["alone", "based"])
@pytest.mark.parametrize("patience", [0, 2])
def test_an_lr_that_the_host_writes_is_no_event(base, patience):
    """And what the loss decides in the step after it keeps its direction, whatever the LR did."""
    rng = random.Random(10 + patience)
    schedule = GreedyLR(patience=patience, factor=0.9, smooth=False, base=base)
    spec = Telling(dataclasses.replace(schedule, base=None), LRS)
    opt = FusedAdamW(parameters(), schedule=schedule)
    recorder, kept = recorded(opt)
    expected, written = [], 0
    for loss in random_losses(rng, 600):
        if rng.random() < 0.3:
            written += 1
            spec.lr = [lr * rng.uniform(0.5, 2.0) for lr in LRS]
            curve_value = float(opt._control.slot("curve_value"))
            for group, level in zip(opt.param_groups, spec.lr, strict=True):
                group["lr"] = level * curve_value
        step(opt, loss)
        expected.append(spec.decision(loss))
    recorder.close()
    assert [each.event for each in kept.steps] == expected
    assert written > 100 and {"raise", "cut"} <= set(expected)
    assert patience == 0 or None in expected


@pytest.mark.parametrize("schedule", [None, Cosine(20, warmup_steps=2)], ids=["none", "cosine"])
def test_without_a_loss_that_decides_there_are_no_events(schedule):
    opt = FusedAdamW(parameters(), schedule=schedule)
    recorder, kept = recorded(opt)
    for loss in random_losses(random.Random(0), 30):
        step(opt, loss)
    recorder.close()
    assert len(kept.steps) == 30 and not any(each.event for each in kept.steps)
