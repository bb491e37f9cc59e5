"""Measured norms over two ranks are those of one process, whatever is sharded, replicated or both."""

import pytest
import torch
from support.ranks import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.telemetry import Recorder

WORLD = 2
STEPS = 3
#: The second rank gets nothing of the third and less of the first; the last is no DTensor.
SHAPES = {(5, 3): Shard(0), (4, 6): Shard(1), (1, 2): Shard(0), (7,): Replicate(), (3,): None}
OPTIONS = [{}, {"max_grad_norm": 0.5}, {"schedule": GreedyLR(patience=0, smooth=False)}, {"skip_nonfinite": True}]


def grads(step):
    """Small integers, whose sums, and halves of them, are exact in any order."""
    source = torch.Generator().manual_seed(step)
    return [torch.randint(-3, 4, shape, generator=source).float() for shape in SHAPES]


def train(params, place, rank, **options):
    """The norms at each step. Every rank tells of its own loss, and each has a recorder, the second without a sink."""
    opt, found = FusedAdamW(params, lr=0.01, **options), []
    Recorder(opt, *([] if rank else [lambda metrics, step: None]), grad_norms=True)
    for step in range(STEPS):
        for param, grad in zip(params, place(grads(step)), strict=True):
            param.grad = grad
        opt.step(loss=2.0 + step + rank) if opt.schedule else opt.step()
        found.append([opt.metrics().grad_norm, opt.metrics().grad_norm_l1])
    opt.check_ranks_agree()
    return found


def recorded(rank):
    mesh = init_device_mesh("cpu", (WORLD,))

    def placed(tensors):
        placements = SHAPES.values()
        return [t if p is None else distribute_tensor(t, mesh, [p]) for t, p in zip(tensors, placements, strict=True)]

    found = []
    for options in OPTIONS:
        found.append(train([torch.nn.Parameter(t) for t in placed(map(torch.ones, SHAPES))], placed, rank, **options))
    replicas = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    return [*found, train(replicas, list, rank, **OPTIONS[2])]


@pytest.mark.timeout(110)
def test_norms_are_those_of_one_process():
    one = train([torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES], list, 0)
    assert [l1 for _, l1 in one] == [sum(float(grad.abs().sum()) for grad in grads(step)) for step in range(STEPS)]
    for found in run(recorded, WORLD):
        assert found == [one] * (len(OPTIONS) + 1)
