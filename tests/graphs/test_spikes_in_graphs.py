"""A captured step with SkipSpikes, with a stand-in for the graph: what a replay skips is decided in it."""

import pytest
import torch
from support.graph_stand_in import Body, StandIn, batch, standing_in, stepped
from support.tensors import assert_same, latest, snapshot

from greedylr_fused import SkipSpikes
from greedylr_fused.graphs import CapturedStep

__all__ = ["standing_in"]
SPIKE = 7


def scaled(i):
    """A batch; one of them is bad."""
    found = batch(i)
    return {"inputs": found["inputs"] * (50.0 if i == SPIKE else 1.0)}


@pytest.mark.parametrize("options", [{}, {"schedule": None}, {"schedule": None, "max_grad_norm": None}], ids=str)
def test_a_replay_skips_what_an_eager_step_does(standing_in, options):
    config = SkipSpikes(rolling_interval_length=6, minimum=2, sigma_factor=8.0)
    eager, ours = (Body(skip_spikes=config, **options) for _ in range(2))
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=2)
    for i in range(12):
        before = ours.params[0].detach().clone()
        step(scaled(i))
        stepped(eager, scaled(i))
        assert torch.equal(before, ours.params[0]) is (i == SPIKE)
    assert step.captured and latest(ours.opt).skipped_spikes == 1
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert ours.opt.read_lr() == eager.opt.read_lr()
