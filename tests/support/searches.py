"""Level searches for tests: golden traces, random runs, and the slots that are compared."""

import functools
import hashlib
import json
import math
import random
from pathlib import Path

from greedylr_fused import Linear
from greedylr_fused.schedules import AdaLRS, Climb, Phase, SearchSpec

#: Slots that every form must have after each step, and the same of the specification.
COMPARED = (
    *("multiplier", "backup", "phase", "window_step", "search_level", "trial_level", "kept", "kept_var", "again"),
    *("gain", "gain_var", "rising", "faded", "worst_loss", "search_losses", "first_loss", "sum_y", "sum_yy", "sum_xy"),
    "event",
)
STEPS = 240
BASE = Linear(STEPS, warmup_steps=12)


@functools.cache
def golden():
    """Of 240 steps each: the configuration, the losses, the skipped steps, the decisions, and a digest of all rows, by
    `second_search`.
    """
    found = json.loads((Path(__file__).parents[1] / "schedules/searches.json").read_text())
    kinds = {"Climb": Climb, "AdaLRS": AdaLRS}
    for case in found.values():
        case["config"] = kinds[case["schedule"]](base=BASE, **case["options"])
        losses = map(float, case["losses"].split())
        case["losses"] = [None if t in case["skipped"] else loss for t, loss in enumerate(losses)]
    return found


def take(spec, loss):
    """One step of the specification; None for a skipped one."""
    return spec.skip() if loss is None else spec.observe(loss)


def state(spec):
    """The values of `COMPARED`."""
    s = spec.sums
    values = (spec.multiplier, spec.backup, spec.phase, spec.window_step, spec.level, spec.trial_level, spec.kept)
    values += (spec.kept_var, spec.again, spec.gain, spec.gain_var, spec.rising, spec.faded, spec.worst)
    return [float(x) for x in (*values, s.n, s.first, s.y, s.yy, s.xy, spec.event)]


def rows(spec, losses):
    """What `second_search.Run.rows` has, of the specification, in hexadecimal."""
    found = [_row(spec)]
    for loss in losses:
        take(spec, loss)
        found.append(_row(spec))
    return hexadecimal(found)


def _row(s):
    return s.backup, s.phase, s.window_step, s.multiplier, s.level, s.trial_level, s.kept, s.kept_var


def hexadecimal(rows):
    """All bits of rows, but those of a NaN."""
    return [[float(x).hex() if math.isfinite(x) else "nan" for x in row] for row in rows]


def decisions(rows):
    """Step, backup, phase and level wherever one of them is new or something is copied; and a digest of all rows."""
    found, before = [], None
    for step, (backup, phase, _, _, level, *_) in enumerate(rows[1:]):
        backup, now = int(float.fromhex(backup)), (int(float.fromhex(phase)), level)
        if backup or now != before:
            found.append([step, backup, *now])
        before = now
    lines = (" ".join(row) for row in rows[1:])
    return found, hashlib.sha256("\n".join(lines).encode()).hexdigest()


def random_config(rng):
    shared = dict(base=BASE, min_window=rng.choice((4, 6, 8)), window=0.01, until=rng.choice((0.4, 0.7, 1.0)))
    shared |= dict(z=rng.choice((0.0, 0.5, 2.0)))
    if rng.random() < 0.5:
        more = dict(anneal=rng.choice((0.0, 0.5, 1.0)), tail=rng.choice((0.3, 1.0)))
        return Climb(**shared, **more, start=rng.choice((1 / 9, 1 / 3, 1.0)), factor=rng.choice((1.5, 3.0)))
    return AdaLRS(**shared, up=rng.choice((1.0, 3.0)), decay=rng.choice((0.5, 0.99)), high=rng.choice((2.0, 16.0)))


def random_losses(rng, steps=STEPS):
    """Losses that fall, rise and turn, with some that are not finite and some steps that are skipped."""
    loss, slope, noise = 5.0, -0.02, rng.choice((0.0, 0.01, 0.2))
    rare = rng.choice((0.0, 0.01, 0.05))
    found = []
    for _ in range(steps):
        if rng.random() < 0.05:
            slope = rng.choice((-0.05, -0.01, 0.0, 0.02))
        loss += slope
        x = loss + noise * rng.gauss(0, 1)
        kind = rng.random()
        found.append(None if kind < rare else rng.choice((math.nan, math.inf, -math.inf)) if kind < 2 * rare else x)
    return found


def random_runs(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        yield random_config(rng), random_losses(rng)


#: What happens in the trials of a Climb, whose losses outside them are 2 and some noise: of each trial in turn the loss
#: at a step of its window.
VERDICTS = {
    "explodes": (lambda at: 2.0 * 1.5**at,) * 4,
    "a spike in the first": (lambda at: 1e6 if at == 6 else 2.0, lambda at: 1.9999, lambda at: 3.0),
    "both lose, together by enough": (lambda at: 2.012,) * 2,
    "both lose, and not by enough": (lambda at: 2.002,) * 3,
    "the first wins by little, the second loses": (lambda at: 1.9999, lambda at: 2.2, lambda at: 3.0),
    "a tie, and a tie": (lambda at: 2.0,) * 3,
    "the first fails, the second loses": (lambda at: math.nan, lambda at: 2.2),
    "the first fails, the second ties": (lambda at: math.inf, lambda at: 2.0, lambda at: 3.0),
    "the second fails": (lambda at: 2.001, lambda at: math.nan),
    "all win": (lambda at: 1.5,) * 4,
    "the third fails": (lambda at: 1.5, lambda at: math.nan),
}


def verdict(name, *, late=False):
    """The configuration and the losses of one of `VERDICTS`; `late`: there is time for one trial alone."""
    config = Climb(base=Linear(80 if late else STEPS, warmup_steps=4), window=0.0, min_window=10)
    spec, trials, losses, number = SearchSpec(config), VERDICTS[name], [], -1
    for step in range(min(110, config.base.total_steps)):
        noise = 0.003 * ((step * 7) % 5 - 2)
        if spec.phase is Phase.TRIAL:
            number += spec.window_step == 0
            losses.append(trials[min(number, len(trials) - 1)](spec.window_step) + noise)
        else:
            losses.append(2.0 + noise)
        spec.observe(losses[-1])
    return config, losses
