"""The PTX of Triton's clip, which skips spikes, against the specification: bits, and any order of its warps."""

import random
import re

import pytest
import torch
from support.machine_code import needs_tools
from support.spikes import Clipped, values

from greedylr_fused import SkipSpikes

pytest.importorskip("triton", reason="triton is not installed")
from greedylr_fused.backends.triton.access import INTERPRETED  # noqa: E402
from ptx import Fault  # noqa: E402
from ptx.launches import Launches  # noqa: E402

pytestmark = [pytest.mark.skipif(INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled"), needs_tools]
CONFIG = SkipSpikes(rolling_interval_length=40, sigma_factor=2.0, minimum=2)


def judged(monkeypatch, count=90, **options):
    Launches(**options).install(monkeypatch)
    clipped, rng = Clipped("triton", torch.device("cpu"), CONFIG), random.Random(2)
    for loss, norm in zip(values(rng, count), values(rng, count), strict=True):
        clipped.take(loss, norm)
    clipped.check()
    return clipped.spec.spikes


@pytest.mark.parametrize("schedule", ["together", "one by one", "random"])
def test_decisions_are_those_of_the_specification(monkeypatch, schedule):
    assert judged(monkeypatch, schedule=schedule) > 3


def test_a_wrong_instruction_is_seen(monkeypatch):
    with pytest.raises((Fault, AssertionError)):
        judged(monkeypatch, mutate=lambda text: re.sub(r"sqrt\.rn\.f64", "abs.f64", text))
