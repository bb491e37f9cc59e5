"""Runs of a level search on a backend's control alone, and the same of the specification."""

import torch

from greedylr_fused.schedules import SearchSpec
from support.oracle import Driven
from support.searches import COMPARED, state, take

LRS = [0.1, 0.003]


def trace(backend, device, config, losses):
    """LRs and the slots of a search after each step; of a skipped step with a loss that must not count."""
    driven, found = Driven(backend, device, config, LRS, COMPARED), []
    for loss in losses:
        driven.control.slot("skip").fill_(float(loss is None))
        pending = torch.tensor([7.0 if loss is None else loss, 1.0], dtype=torch.float64, device=device)
        found.append(driven.observe(pending))
    return torch.stack(found).tolist()


def wanted(config, losses, saved_at=None):
    """The same of the specification, saved and loaded after the step with that index, if any."""
    spec, curve, found = SearchSpec(config), config.base.curve(), []
    for step, loss in enumerate(losses):
        take(spec, loss)
        value = curve[min(spec.step, len(curve) - 1)]
        found.append([*(lr * spec.multiplier * value for lr in LRS), *state(spec)])
        if step == saved_at:
            spec.resume()
    return found


def assert_same(got, want, config):
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        assert repr(a) == repr(b), f"step {step} of {config}: {dict(zip(COMPARED, a[2:], strict=True))}, not {b}"
