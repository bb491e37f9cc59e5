"""What a step does with the sums of other ranks: it never waits on the host, and graphs hold the all-reduce.

A single GPU has one rank to offer, whose sums are all there are: adding them up changes nothing, and shows the rest.
"""

import datetime

import pytest
import torch
import torch.distributed as dist
from machines import Training
from support.ranks import run
from support.tensors import assert_same, snapshot

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.ranks.ranks import Ranks

STEPS = 12
OPTIONS = {"before_the_update": {"max_grad_norm": 0.01}, "during_the_update": {}}


@pytest.fixture
def one_rank(machine):
    """A group of this process alone, over which nothing is added up unless `adding_up` says so."""
    backend = "nccl" if machine.on_gpu else "gloo"
    limit = datetime.timedelta(seconds=30)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=limit)
    yield
    dist.destroy_process_group()


@pytest.fixture
def adding_up(one_rank, monkeypatch):
    """Makes the optimizers that it is given add up over the ranks, be they one."""
    chosen = []
    monkeypatch.setattr(Ranks, "shared", lambda self, control, _: control.shared if self in chosen else None)
    return lambda opt: chosen.append(opt._engine.ranks)


@pytest.mark.parametrize("options", OPTIONS)
def test_adding_up_waits_for_nothing_and_changes_nothing(machine, adding_up, options):
    alone, ranked = (Training(machine, **OPTIONS[options]) for _ in range(2))
    adding_up(ranked.opt)
    for training in (alone, ranked):
        training.step(0)
    machine.wait()
    for i in range(1, STEPS):
        alone.step(i)
        with machine.refusing_to_wait():
            ranked.step(i)
    assert_same(snapshot(ranked.opt), snapshot(alone.opt))
    assert machine.metrics(ranked.opt).step == STEPS


@pytest.mark.parametrize("options", OPTIONS)
def test_a_graph_holds_the_sums_of_the_ranks(machine, adding_up, options):
    alone, ranked = (Training(machine, **OPTIONS[options]) for _ in range(2))
    adding_up(ranked.opt)
    replays = [training.captured() for training in (alone, ranked)]
    for i in range(STEPS):
        for replay in replays:
            replay(i)
    assert_same(snapshot(ranked.opt), snapshot(alone.opt))


def over_nccl(rank):
    """FSDP2 over all GPUs of this machine, clipped, beside torch's AdamW after torch's clipping."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    torch.cuda.set_device(rank)
    group = dist.new_group(backend="nccl", timeout=datetime.timedelta(seconds=30))
    mesh = DeviceMesh.from_group(group, "cuda")
    nets = []
    for _ in range(2):
        torch.manual_seed(1)
        nets.append(torch.nn.Sequential(torch.nn.Linear(30, 70), torch.nn.Tanh(), torch.nn.Linear(70, 3)).cuda())
        for layer in (nets[-1][0], nets[-1][2], nets[-1]):
            fully_shard(layer, mesh=mesh)
    schedule = GreedyLR(patience=0, factor=0.7, smooth=False)
    ours = FusedAdamW(nets[0].parameters(), lr=0.01, schedule=schedule, max_grad_norm=0.1, process_group=group)
    torchs = torch.optim.AdamW(nets[1].parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    worst, lrs = 0.0, []
    for _ in range(8):
        x = torch.randn(16, 30, generator=generator).cuda()
        losses = []
        for net in nets:
            net.zero_grad()
            losses.append((net(x) - x[:, :3]).square().mean())
            losses[-1].backward()
        norm = torch.nn.utils.clip_grad_norm_(nets[1].parameters(), 0.1).full_tensor()
        torchs.param_groups[0]["lr"] = ours.read_lr()[0]
        torchs.step()
        ours.step(loss=losses[0])
        ours.check_ranks_agree()
        lrs.append(ours.read_lr()[0])
        torch.cuda.synchronize()
        ours.metrics()
        torch.cuda.synchronize()
        worst = max(worst, abs(ours.metrics().grad_norm - norm.item()) / norm.item())
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(a.to_local(), b.to_local())
    dist.destroy_process_group(group)
    return worst, lrs


@pytest.mark.gpu
def test_several_gpus_decide_together():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU: NCCL joins no two ranks on it")
    ranks = run(over_nccl, min(torch.cuda.device_count(), 4), timeout=100.0)
    assert all(lrs == ranks[0][1] for _, lrs in ranks) and len(set(ranks[0][1])) > 1
    assert all(worst < 1e-5 for worst, _ in ranks)  # torch's norm is one of float32 squares
