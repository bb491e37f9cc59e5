"""The control step in plain torch operations (C1-C9, S1-S3), for the backend `reference`: every branch a select."""

from __future__ import annotations

import torch
from torch import Tensor

from greedylr_fused.backends.mechanic import Learners
from greedylr_fused.backends.search import search
from greedylr_fused.control import SLOT, block, ring_begin
from greedylr_fused.schedules import CompareWith, Event, Kind, Phase, Skip
from greedylr_fused.tensors import TensorTable


class Slots:
    """The control vector, read and written by name."""

    def __init__(self, table: TensorTable) -> None:
        vector, n_groups = table.control, table.n_groups
        self.vector, self.n_groups, self.curve = vector, n_groups, table.curve
        self.searches = table.searches
        self.lr, self.level = (vector[block(name, n_groups)] for name in ("lr", "level"))
        self.initial_lr, self.min_lr, self.max_lr = (
            vector[block(name, n_groups)] for name in ("initial_lr", "min_lr", "max_lr")
        )
        tuned = table.tuned
        self.learners = None if tuned.tuner is None else Learners(vector, tuned.begin, len(tuned.tuner.betas))
        self.window = vector[ring_begin(n_groups) : tuned.begin - 2 * table.spike_window]
        self.zero = torch.zeros((), dtype=torch.float64, device=vector.device)

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy, which later writes do not change."""
        return self.vector[SLOT[name]].clone()

    def set(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.vector[SLOT[name]].copy_(value)


def run_control(c: Slots) -> None:
    """Run the control step, every branch a select: both sides are computed and one is kept."""
    where, zero = torch.where, c.zero
    skip = c["skip"] != 0
    seen = ~skip & (c["loss_weight"] != 0)
    x = c["loss_sum"] / c["loss_weight"]  # C1
    finite = torch.isfinite(x)
    c.set(
        skipped=c["skipped"] + skip,
        step=c["step"] + ~skip,
        loss=where(seen, x, c["loss"]),
        loss_sum=zero,
        loss_weight=zero,
        event=zero,
        backup=zero,
    )
    x = where(seen & finite, _windowed(c, x, seen & finite), x)  # C2
    c.set(smoothed=where(seen & (finite | (c["kind"] == Kind.NONE)), x, c["smoothed"]))
    if c.searches:
        fails = (c["skip"] == Skip.NONFINITE) & (c["phase"] == Phase.TRIAL)
        search(c.vector, c.initial_lr, c.level, where(skip, torch.nan, x), seen | fails)
        moves = ~skip | fails
    else:
        _judge(c, x, seen & (c["kind"] != Kind.NONE), finite)
        moves = ~skip
    _set_lr(c, moves & (c["curve_length"] != 0))


def _set_lr(c: Slots, moves: Tensor) -> None:
    """Set the LR by the step schedule: the level times the curve value of the next step."""
    length, start, steps = c["curve_length"], c["decay_start"], c["decay_steps"]  # S1
    curve_value = _at(c.curve, torch.minimum(c["step"], length - 1))
    into = torch.minimum(c["step"] - start, steps)  # S2
    decays = c["step"] >= start
    decayed = curve_value * _at(c.curve, torch.where(decays, length + into, c.zero))
    curve_value = torch.where(moves, torch.where(decays, decayed, curve_value), c["curve_value"])
    c.set(curve_value=curve_value)
    c.lr.copy_(torch.where(moves, c.level * curve_value, c.lr))  # S3


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(0, index.clamp(min=0).to(torch.int64).reshape(1)).reshape(())


def _windowed(c: Slots, x: Tensor, enters: Tensor) -> Tensor:
    """Return the mean over the window with x in it. Add first, evict after, divide by what is there."""
    if c.window.numel() == 0:
        return x
    size, head, count = c["window_size"], c["window_head"], c["window_count"]
    at = head.to(torch.int64).reshape(1)
    oldest = c.window.gather(0, at).reshape(())
    total = c["window_sum"] + x
    total = torch.where(count == size, total - oldest, total)
    count = torch.minimum(count + 1, size)
    c.window.scatter_(0, at, torch.where(enters, x, oldest).reshape(1))
    c.set(
        window_sum=torch.where(enters, total, c["window_sum"]),
        window_count=torch.where(enters, count, c["window_count"]),
        window_head=torch.where(enters, torch.remainder(head + 1, size), head),
    )
    return total / count


def _is_better(c: Slots, x: Tensor) -> Tensor:
    best, threshold = c["best"], c["threshold"]
    relative = c["threshold_rel"] != 0
    below = x < torch.where(relative, best * (1.0 - threshold), best - threshold)
    above = x > torch.where(relative, best * (1.0 + threshold), best + threshold)
    return torch.where(c["mode_max"] != 0, above, below)


def _judge(c: Slots, x: Tensor, active: Tensor, finite: Tensor) -> None:
    where, zero = torch.where, c.zero
    best_before = c["best"]
    due = active & (c["forget_every"] > 0) & (c["forget_left"] == 0)  # C3
    left = where(due, c["forget_every"], c["forget_left"])
    c.set(
        best=where(due, _worst(c), c["best"]),
        good=where(due, zero, c["good"]),
        bad=where(due, zero, c["bad"]),
        forget_left=where(active & (c["forget_every"] > 0), left - 1, left),
    )
    cooling = active & (c["cooldown_left"] > 0)
    warming = active & ~cooling & (c["warmup_left"] > 0)
    live = active & ~cooling & ~warming
    better = finite & _is_better(c, x)  # C4
    best = better & where(c["compare_with"] == CompareWith.BEST_WHILE_DECIDING, live, active)
    remembered = where(c["compare_with"] == CompareWith.LAST, active & finite, best)
    c.set(  # C5
        cooldown_left=c["cooldown_left"] - cooling.double(),
        warmup_left=c["warmup_left"] - warming.double(),
        best=where(remembered, x, c["best"]),
        good=where(live & better, c["good"] + 1, where(active, zero, c["good"])),
        bad=where(live & ~better, c["bad"] + 1, where(active, zero, c["bad"])),
    )
    _move(c, live, best_before)


def _worst(c: Slots) -> Tensor:
    return torch.where(c["mode_max"] != 0, -torch.inf, torch.inf)


def _move(c: Slots, live: Tensor, best_before: Tensor) -> None:
    """Raise, cut or start over (C6..C9)."""
    where, zero = torch.where, c.zero
    factor, eps, patience = c["factor"], c["eps"], c["patience"]
    raised = live & (c["raises"] != 0) & (c["good"] > patience)  # C6
    cut = live & ~raised & (c["bad"] > patience)  # C7
    level = c.level.clone()
    up = torch.minimum(level / factor, c.max_lr)
    down = torch.maximum(level * factor, c.min_lr)
    rises, falls = raised & (up - level > eps), cut & (level - down > eps)
    level = where(rises, up, where(falls, down, level))
    at_floor = cut & (level <= c.min_lr).all()
    left = where(raised, c["reset_start"], c["resets_left"] - at_floor.double())
    reset = at_floor & (left <= 0)  # C8
    changed = falls.any() | (level != c.initial_lr).any() | (best_before != _worst(c))
    event = where(falls.any(), float(Event.CUT), where(rises.any(), float(Event.RAISE), zero))
    c.level.copy_(where(reset, c.initial_lr, level))
    c.set(
        event=where(reset & changed, float(Event.RESET), event),
        best=where(reset, _worst(c), c["best"]),
        forget_left=where(reset, c["forget_every"], c["forget_left"]),
        resets_left=where(reset, c["reset_start"], left),
        window_sum=where(reset, zero, c["window_sum"]),
        window_count=where(reset, zero, c["window_count"]),
        window_head=where(reset, zero, c["window_head"]),
        good=where(raised | reset, zero, c["good"]),
        warmup_left=where(raised, c["warmup"], where(reset, zero, c["warmup_left"])),
        cooldown_left=where(cut, c["cooldown"], c["cooldown_left"]),  # C9
        bad=where(cut, zero, c["bad"]),
    )
