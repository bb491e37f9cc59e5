"""A captured step with a tuner, with a stand-in for the graph: its replays are the steps of an eager training."""

import json

import torch
from support.graph_stand_in import Body, StandIn, batch, standing_in, stepped
from support.tensors import assert_same, latest, snapshot

from greedylr_fused import Mechanic
from greedylr_fused.graphs import CapturedStep
from greedylr_fused.telemetry import Recorder

__all__ = ["standing_in"]


def test_replays_are_the_steps_of_an_eager_training(standing_in, tmp_path):
    """Skipped ones, too; each is recorded with its S."""
    eager, ours = (Body(lr=1.0, tuner=Mechanic()) for _ in range(2))
    StandIn.optimizer = ours.opt
    file = tmp_path / "run.jsonl"
    scales = []
    with Recorder(ours.opt, file):
        step = CapturedStep(ours, ours.opt, warmup=2)
        for i in range(10):
            inputs = batch(i)
            if i == 6:
                inputs["inputs"][0] = torch.nan
            step(inputs)
            stepped(eager, inputs)
            scales.append(latest(eager.opt).tuner_scale)
            assert latest(ours.opt) == latest(eager.opt)
    assert step.captured and latest(ours.opt).skipped == 1
    assert scales[6] == scales[5] and scales[9] > 1e-6
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert [json.loads(line)["tuner_scale"] for line in file.read_text().splitlines()] == scales
