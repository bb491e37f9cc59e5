"""What goes with an engine: mixed precision, loss scaling, losses that are distributed themselves, and how many
collectives there are.
"""

import math

import pytest
import torch
import torch.distributed as dist
from support.foreign_warnings import FSDP2_VIEW
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils._python_dispatch import TorchDispatchMode
from training import Net

from greedylr_fused import FusedAdamW, GreedyLR

pytestmark = FSDP2_VIEW
WORLD = 2
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=False)


class Collectives(TorchDispatchMode):
    """The collectives within, by name, with the number of elements of each."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.found.append((str(function.overloadpacket), sum(tensor.numel() for tensor in tensors)))
        return function(*args, **(kwargs or {}))


def sharded(net, **options):
    for layer in (net.embed, net.up, net):
        fully_shard(layer, **options)
    return net


def network():
    torch.manual_seed(3)
    return Net()


def inputs(rank, count):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(count, 6, 4, 4, generator=generator)


def bfloat16(rank):
    """Parameters in float32, computed in bfloat16, gradients summed in float32: beside torch's AdamW and clipping."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    net, twin = (sharded(network(), mp_policy=policy) for _ in range(2))
    opt = FusedAdamW(net.parameters(), lr=0.01, schedule=SCHEDULE, max_grad_norm=0.5)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.01)
    norms, worst = [], 0.0
    for x in inputs(rank, 6):
        torchs.param_groups[0]["lr"] = opt.read_lr()[0]
        for own in (net, twin):
            own.zero_grad()
            loss = (own(x).float() - x.sum(2, keepdim=True)).square().mean()
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5).full_tensor().item()
        opt.step(loss=loss.detach())
        torchs.step()
        norms.append((opt.metrics().grad_norm, norm))
        pairs = zip(net.parameters(), twin.parameters(), strict=True)
        worst = max(worst, *((a - b).detach().full_tensor().abs().max().item() for a, b in pairs))
        with torch.no_grad():  # from the same parameters at each step, so that the gradients have the same bits
            for a, b in zip(net.parameters(), twin.parameters(), strict=True):
                b.copy_(a)
    opt.check_ranks_agree()
    eps = torch.finfo(torch.float32).eps
    rounding = 250 * eps  # of a norm by torch: it adds up float32 squares of fewer than 250 elements
    largest = 0.01 / 0.7**6  # learning rate, and so update
    assert opt.param_groups[0]["params"][0].dtype == torch.float32
    assert all(norm == pytest.approx(wanted, rel=rounding, abs=0) for norm, wanted in norms)
    # Both moments carry the rounding of the clip coefficient, and the parameters, below 2, their own.
    assert worst <= 2 * rounding * largest + 2 * eps
    assert any(norm > 0.5 for norm, _ in norms), "it clips"


def test_mixed_precision_equals_torch(ranks):
    ranks(bfloat16)


def scaled(rank, scaler, net):
    """GradScaler, with an infinite gradient on rank 1 at the second step."""
    opt = FusedAdamW(net.parameters(), lr=0.01, schedule=SCHEDULE)
    seen = []
    for step, x in enumerate(inputs(rank, 4)):
        opt.zero_grad()
        loss = net(x).square().mean()
        scaler.scale(loss * (math.inf if step == 1 and rank == 1 else 1.0)).backward()
        opt.observe(loss.detach())
        scaler.step(opt)
        scaler.update()
        seen.append((opt.metrics().step, opt.metrics().skipped, scaler.get_scale()))
    opt.check_ranks_agree()
    assert seen == [(1, 0, 8.0), (1, 1, 4.0), (2, 1, 4.0), (3, 1, 4.0)]


def fsdp1_scaled(rank):
    net = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    scaled(rank, ShardedGradScaler(device="cpu", init_scale=8.0), net)


def fsdp2_scaled(rank):
    scaled(rank, torch.amp.GradScaler("cpu", init_scale=8.0), sharded(network()))


@pytest.mark.parametrize("engine", [fsdp1_scaled, fsdp2_scaled])
def test_what_grad_scaler_finds_on_one_rank_counts_on_all(ranks, engine):
    ranks(engine)


def distributed_losses(rank):
    """A loss from sharded logits, one that is yet to be added up, and one that lies on a single rank; and a weight."""
    mesh = init_device_mesh("cpu", (WORLD,))
    weight = torch.nn.Parameter(torch.ones(3))
    opt = FusedAdamW([weight], lr=0.1, schedule=SCHEDULE)
    found = []

    def step(loss, weight=1.0):
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.observe(loss, weight)
        opt.step()
        found.append(opt.metrics().loss)

    logits, labels = torch.arange(12.0).reshape(3, 4).sin(), torch.tensor([0, 3, 1])
    with loss_parallel():
        step(torch.nn.functional.cross_entropy(distribute_tensor(logits, mesh, [Shard(1)]), labels))
    step(DTensor.from_local(torch.tensor(1.0 + rank), mesh, [Partial()], run_check=False))
    step(distribute_tensor(torch.tensor([5.0]), mesh, [Shard(0)]))
    three = distribute_tensor(torch.tensor(3.0), mesh, [Replicate()])
    opt.observe(torch.tensor(1.0))
    step(distribute_tensor(torch.tensor(9.0), mesh, [Replicate()]), three)
    opt.step(loss=three)
    entropy = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found == [pytest.approx(entropy, rel=1e-6), 3.0, 5.0, (1 + 3 * 9) / 4]
    assert opt.metrics().loss == 3.0


def test_a_loss_may_be_distributed(ranks):
    ranks(distributed_losses)


def collectives(rank):
    """Those of the second step: a small all-reduce or none."""
    mesh = init_device_mesh("cpu", (WORLD,))
    alone = dist.new_subgroups(1)[0]

    def of(param, **options):
        opt = FusedAdamW([param], lr=0.1, **options)
        param.grad = torch.ones_like(param)
        opt.step(loss=1.0)  # the first also compares plain parameters
        with Collectives() as seen:
            opt.step(loss=1.0)
        return seen.found

    def plain():
        return torch.nn.Parameter(torch.ones(4))

    def dtensor():
        return torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))

    loss, norm = 2, 4  # numbers that each contributes
    assert of(plain()) == of(dtensor()) == of(plain(), max_grad_norm=1.0) == []
    assert of(plain(), max_grad_norm=1.0, schedule=SCHEDULE, process_group=alone) == []
    assert of(plain(), schedule=SCHEDULE) == [("c10d.allreduce_", loss)]
    assert of(dtensor(), max_grad_norm=1.0) == [("c10d.allreduce_", norm)]
    for param in (plain(), dtensor()):
        assert of(param, max_grad_norm=1.0, schedule=SCHEDULE) == [("c10d.allreduce_", loss + norm)]


def test_one_small_all_reduce_or_none(ranks):
    ranks(collectives)
