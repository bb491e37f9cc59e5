"""The clip of a backend over a bare control vector, step by step beside the specification of SkipSpikes."""

import math

from greedylr_fused.backends import BACKENDS
from greedylr_fused.control import spikes_of
from greedylr_fused.control.vector import Control
from greedylr_fused.schedules import SpikeSpec
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.table import TensorTable


class Clipped:
    """The clip of one backend over a bare control vector, and what it is to do by the specification."""

    def __init__(self, backend, device, config, schedule=None):
        options = dict(max_grad_norm=None, skip_nonfinite=True, skip_spikes=config)
        self.control = Control(schedule, [0.1], **options, device=device)
        kind = BACKENDS[backend]
        self.table = TensorTable([], self.control, kind.chunk_size, Copies(), kind.writes_copies)
        self.backend = kind(self.table)
        self.spec = SpikeSpec(config, larger_is_worse=schedule is None or schedule.mode == "min")

    def take(self, loss, norm, *, found_inf=False, weight=1.0):
        """One step; whether it was skipped as a spike."""
        values = dict(loss_sum=loss * weight, loss_weight=weight, grad_sq_sum=norm * norm, found_inf=float(found_inf))
        for name, value in values.items():
            self.control.slot(name).fill_(value)
        self.backend.clip()
        self.backend.update()
        weighed = loss * weight / weight if weight else math.nan
        spike = self.spec.judge(weighed, math.sqrt(norm * norm), skipped=found_inf)
        assert float(self.control.slot("skip")) == (1 if found_inf else 2 if spike else 0)
        return spike

    def check(self):
        """The rings and the count, bit for bit."""
        found = spikes_of(self.control.vector, self.control.spike_window)
        assert (found["losses"], found["norms"]) == (list(self.spec.losses), list(self.spec.norms))
        assert found["spikes"] == self.spec.spikes


def values(rng, count):
    """Of one of several characters: noise of any size, a drift, a level that shifts, constants, few different ones."""
    kind, scale = rng.randrange(5), 10.0 ** rng.uniform(-150, 150)
    noise, offset = rng.choice((1e-14, 1e-3, 1.0)), rng.choice((-5.0, 0.0, 3.0))
    for i in range(count):
        x = offset + rng.gauss(0, noise)
        x += {1: i * noise, 2: 40.0 * noise * (i > count // 2), 4: noise * rng.randrange(3)}.get(kind, 0.0)
        x = offset if kind == 3 else x
        if rng.random() < 0.05:
            x += rng.choice((-1, 1, 1)) * noise * rng.uniform(2, 20)
        yield x * scale
