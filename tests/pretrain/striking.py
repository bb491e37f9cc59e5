"""Hits a rank at a chosen moment: anywhere in a step or a save, as a share of the function calls that it takes."""

import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

PHASES = {"step": ("trainer", "Trainer.step"), "save": ("checkpoint", "save")}


@dataclass(frozen=True)
class Moment:
    """When a rank is hit, and by what.

    Args:
        rank: which one.
        phase: "step" or "save".
        number: which step, which save; from 1.
        share: how much of it is done, from 0 to 1.
        by: the signal.
    """

    rank: int
    phase: str
    number: int
    share: float
    by: signal.Signals = signal.SIGKILL


def count_calls(rank):
    """Write down how many calls each step and save of this process makes."""
    counts = {phase: [] for phase in PHASES}

    def counting(phase, act):
        counts[phase].append(0)

        def count(frame, event, arg):
            counts[phase][-1] += event in ("call", "c_call")

        result = profiled(act, count)
        Path("ranks", f"calls{rank}").write_text(json.dumps(counts))
        return result

    for phase in PHASES:
        wrap(phase, counting)


def keep_calls(source, folder):
    """Hand what the ranks of an undisturbed run counted to one that is to be disturbed."""
    counts = [json.loads(path.read_text()) for path in sorted((source / "ranks").glob("calls*"))]
    (folder / "calls").write_text(json.dumps(counts))


def strike(moment):
    """Send this process the signal when its moment has come."""
    left = int(moment.share * json.loads(Path("calls").read_text())[moment.rank][moment.phase][moment.number - 1])
    number = 0

    def striking(phase, act):
        nonlocal number
        number += 1
        if number != moment.number:
            return act()

        def count(frame, event, arg):
            nonlocal left
            left -= event in ("call", "c_call")
            if left < 0:
                sys.setprofile(None)
                os.kill(os.getpid(), moment.by)

        result = profiled(act, count)
        assert left < 0, f"{moment}: there were fewer calls than in the run that was counted"
        return result

    wrap(moment.phase, striking)


def profiled(act, count):
    sys.setprofile(count)
    try:
        return act()
    finally:
        sys.setprofile(None)


def wrap(phase, around):
    """Let `around(phase, act)` do each step, or each save."""
    module, path = PHASES[phase]
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    act = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: around(phase, lambda: act(*args, **options)))
