"""Mechanic over two ranks: the S and the parameters of one process, whatever is sharded or replicated."""

import io

import pytest
import torch
import torch.distributed.checkpoint.state_dict as dcp
from support import tuned
from support.tensors import assert_same_bits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, Mechanic

WORLD, STEPS = 2, 8
#: The second rank gets nothing of the third and less of the first; the last is no DTensor.
SHAPES = {(5, 3): Shard(0), (4, 6): Shard(1), (1, 2): Shard(0), (7,): Replicate(), (3,): None}
SCHEDULES = [Cosine(STEPS, warmup_steps=2), GreedyLR(patience=0, factor=0.5, smooth=False)]
OPTIONS = tuned.OPTIONS | {"lr": 1.0, "max_grad_norm": 3.0}


def grads(step):
    return tuned.gradients(SHAPES, step)


def train(params, place, rank, schedule):
    """S after each step. Every rank tells of its own loss."""
    opt, found = FusedAdamW(params, schedule=schedule, tuner=Mechanic(), **OPTIONS), []
    for step in range(STEPS):
        for param, grad in zip(params, place(grads(step)), strict=True):
            param.grad = grad
        opt.step(loss=2.0 + step + rank)
        found.append(opt.metrics().tuner_scale)
    opt.check_ranks_agree()
    return found


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def tuned_ranks(rank):
    mesh = init_device_mesh("cpu", (WORLD,))

    def placed(tensors):
        placements = SHAPES.values()
        return [t if p is None else distribute_tensor(t, mesh, [p]) for t, p in zip(tensors, placements, strict=True)]

    found = []
    for schedule in SCHEDULES:
        params = [torch.nn.Parameter(t) for t in placed(tuned.starts(SHAPES))]
        found.append((train(params, placed, rank, schedule), [whole(p) for p in params]))
    return found


def test_s_and_parameters_are_those_of_one_process(ranks):
    """To the rounding of sums in another order."""
    for found in zip(*ranks(tuned_ranks), strict=True):
        assert found[0][0] == found[1][0]
    for (scales, params), schedule in zip(ranks(tuned_ranks)[0], SCHEDULES, strict=True):
        alone = [torch.nn.Parameter(t) for t in tuned.starts(SHAPES)]
        expected = train(alone, list, 0.5, schedule)
        assert scales == pytest.approx(expected, rel=1e-12) and scales[-1] > 1e-6
        for ours, one in zip(params, alone, strict=True):
            assert torch.allclose(ours, one.detach(), rtol=0, atol=1e-15)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def stepped(net, opt, steps):
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        opt.step()
        opt.zero_grad()


def sharded():
    net = fully_shard(network())
    return net, FusedAdamW(net.parameters(), schedule=Cosine(20), tuner=Mechanic(), **OPTIONS)


def resumed(rank, whole_state):
    """FSDP2 with distributed checkpointing, sharded or gathered."""
    options = dcp.StateDictOptions(full_state_dict=whole_state)
    net, opt = sharded()
    stepped(net, opt, range(5))
    model, state = dcp.get_state_dict(net, opt, options=options)
    file = io.BytesIO()
    torch.save((model, state), file)
    file.seek(0)
    model, state = torch.load(file, weights_only=False)
    other_net, other = sharded()
    dcp.set_state_dict(other_net, other, model_state_dict=model, optim_state_dict=state, options=options)
    stepped(net, opt, range(5, 8))
    stepped(other_net, other, range(5, 8))
    assert other.metrics().tuner_scale == opt.metrics().tuner_scale > 1e-6
    assert other._control.tuned.learned() == opt._control.tuned.learned()
    for a, b in zip(net.parameters(), other_net.parameters(), strict=True):
        assert_same_bits(whole(a), whole(b))
        for name in ("mechanic_offset", "mechanic_s"):
            assert_same_bits(whole(opt.state[a][name]), whole(other.state[b][name]), name)
    assert opt.state[next(net.parameters())]["mechanic_offset"].placements == (Shard(0),)
    other.check_ranks_agree()


@pytest.mark.parametrize("whole_state", [False, True])
def test_fsdp_resumes_to_the_bit(ranks, whole_state):
    ranks(resumed, whole_state)


def refused(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    with pytest.raises(TypeError, match=r"tuner: expected None within Zero.*, got Mechanic\(.*; shard"):
        ZeroRedundancyOptimizer(network().parameters(), FusedAdamW, lr=1.0, tuner=Mechanic())


def test_zero_refuses_it(ranks):
    ranks(refused)
