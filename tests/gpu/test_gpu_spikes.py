"""SkipSpikes on the GPU against its specification in Python floats, decision for decision, many steps per graph."""

import math
import random

import pytest
import torch
from support.tensors import parameter

from greedylr_fused import FusedAdamW, SkipSpikes
from greedylr_fused.control import spikes_of
from greedylr_fused.schedules import SpikeSpec

#: Steps per graph, and replays.
BATCH, REPLAYS = 20, 6


def losses():
    """About two in a hundred are spikes, and as many are not finite."""
    rng = random.Random(5)
    for _ in range(BATCH * REPLAYS):
        x = rng.random()
        yield math.nan if x < 0.02 else rng.gauss(2, 0.1) * (4.0 if x > 0.98 else 1.0)


@pytest.mark.parametrize("size", [5, 32, 50, 128])
def test_every_decision_is_that_of_the_specification(machine, size):
    device, config = machine.device, SkipSpikes(rolling_interval_length=size, minimum=4, sigma_factor=3.0)
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    opt = FusedAdamW([param], skip_spikes=config, backend=machine.backend)
    given = torch.tensor(list(losses()), dtype=torch.float64, device=device).view(REPLAYS, BATCH)
    sizes = given.flip(1).nan_to_num(2.0).to(torch.float32)
    loss, scale = torch.empty_like(given[0]), torch.empty_like(sizes[0])
    rows = torch.empty(BATCH, 2, dtype=torch.float64, device=device)
    slots = [opt._control.slot(name) for name in ("grad_norm", "spikes")]

    def step_all():
        for i in range(BATCH):
            param.grad.fill_(1.0).mul_(scale[i])
            opt.step(loss=loss[i])
            torch.stack(slots, out=rows[i])

    loss.copy_(given[0])
    scale.copy_(sizes[0])
    step_all()
    found, run = [rows.clone()], step_all
    if machine.on_gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step_all()
        run = graph.replay
    for own_losses, own_sizes in zip(given[1:], sizes[1:], strict=True):
        loss.copy_(own_losses)
        scale.copy_(own_sizes)
        run()
        found.append(rows.clone())
    spec = SpikeSpec(config)
    for own, (norm, spikes) in zip(given.flatten().tolist(), torch.cat(found).tolist(), strict=True):
        spec.judge(own, norm)
        assert spikes == spec.spikes
    rings = spikes_of(opt._control.vector, size)
    assert (rings["losses"], rings["norms"]) == (list(spec.losses), list(spec.norms))
    assert machine.metrics(opt).skipped_spikes == spec.spikes > 1
