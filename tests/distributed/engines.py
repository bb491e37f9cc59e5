"""Engines of PyTorch around the network of `training`.

Each is a function `(rank, world) -> (net, opt, arguments of train, function that returns all parameters in full)`.
"""

import contextlib
import dataclasses
import functools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from training import BATCH, OPTIONS, full, halves, network, shares, whole

from greedylr_fused import DeviceSchedule, FusedAdamW


def ddp(rank, world):
    net = DistributedDataParallel(network())
    opt = FusedAdamW(net.parameters(), **OPTIONS)
    return net, opt, averaged(rank, world, lambda last: contextlib.nullcontext() if last else net.no_sync()), wrapped


def averaged(rank, data_ranks, accumulate):
    """Arguments of `train` for one of several ranks that average gradients, with two micro-batches."""
    return dict(parts=halves(shares(data_ranks)[rank]), data_ranks=data_ranks, accumulate=accumulate)


def wrapped(net):
    return whole(net.module)


class DrivenFromOutside:
    """A ZeroRedundancyOptimizer and the DeviceSchedule over it, called as one FusedAdamW is."""

    def __init__(self, zero, schedule):
        self._zero, self._schedule = zero, DeviceSchedule(zero, schedule)
        self.zero_grad, self.observe = zero.zero_grad, self._schedule.observe

    def step(self):
        self._zero.step()
        self._schedule.step()

    def metrics(self):
        norm = self._zero.optim.metrics().grad_norm
        return dataclasses.replace(self._schedule.metrics(), grad_norm=norm)


def zero_in_buckets(rank, world):
    """Parameters are views into buckets, on other memory than at construction of the model."""
    return zero(rank, world, parameters_as_bucket_view=True)


def zero(rank, world, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it was not imported before

    net, _, arguments, parameters = ddp(rank, world)
    plain = {name: value for name, value in OPTIONS.items() if name not in ("lr", "schedule")}
    lr = torch.tensor(OPTIONS["lr"], dtype=torch.float64)
    opt = ZeroRedundancyOptimizer(net.parameters(), FusedAdamW, lr=lr, partitions=world, **plain, **options)
    return net, DrivenFromOutside(opt, OPTIONS["schedule"]), arguments, parameters


def sharded(net, rank, data_ranks, layers=("embed", "up", "head"), **options):
    """FSDP2 of `net`: its layers and what is left."""
    for layer in (*(getattr(net, name) for name in layers), net):
        fully_shard(layer, **options)
    opt = FusedAdamW(net.parameters(), **OPTIONS)

    @contextlib.contextmanager
    def accumulate(last):
        net.set_requires_gradient_sync(last)
        yield

    return net, opt, averaged(rank, data_ranks, accumulate), whole


def fsdp2(rank, world, **options):
    return sharded(network(), rank, world, **options)


def fsdp2_keeps_parameters(rank, world):
    return fsdp2(rank, world, reshard_after_forward=False)


def fsdp2_offloads(rank, world):
    return fsdp2(rank, world, offload_policy=CPUOffloadPolicy(pin_memory=False))


def fsdp2_ignores(rank, world):
    """What FSDP2 ignores is replicated, and averaged by hand."""
    net = network()
    ignored = set(net.norm.parameters())
    net, opt, arguments, parameters = sharded(net, rank, world, ignored_params=ignored)

    def finish():
        for param in ignored:
            dist.all_reduce(param.grad)
            param.grad /= world

    return net, opt, arguments | {"finish": finish}, parameters


def hsdp(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return sharded(network(), rank, world, mesh=mesh)


def tensor_parallel(rank, world):
    """Shard(0), Shard(1), Replicate and plain parameters in one model; all ranks see the whole batch."""
    net = network()
    parallel(net, init_device_mesh("cpu", (world,)))
    return net, FusedAdamW(net.parameters(), **OPTIONS), dict(parts=halves(range(BATCH))), whole


def parallel(net, mesh):
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(net, mesh, plan)


def sequence_parallel(rank, world):
    """As in tensor parallelism; each rank holds a part of the sequence between the layers, so that the gradient of what
    is replicated there comes as a sum yet to be made (Partial).
    """
    net = network()
    plan = {
        "embed": ColwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "head": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate(), use_local_output=True),
    }
    parallelize_module(net, init_device_mesh("cpu", (world,)), plan)
    return net, FusedAdamW(net.parameters(), **OPTIONS), dict(parts=halves(range(BATCH))), whole


def tensor_parallel_and_fsdp2(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    net = network()
    parallel(net, mesh["tensor"])
    return sharded(net, mesh["data"].get_local_rank(), 2, layers=("up", "down"), mesh=mesh["data"])


def tensor_parallel_and_ddp(rank, world):
    """DDP puts plain parameters in the place of DTensors, and they vanish from the modules at the first forward."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    net = network()
    parallel(net, mesh["tensor"])
    layouts = {
        name: (param.placements if hasattr(param, "placements") else None) for name, param in net.named_parameters()
    }
    net = DistributedDataParallel(net, device_mesh=mesh["data"])
    found = dict(zip(layouts, net.parameters(), strict=True))
    opt = FusedAdamW(found.values(), **OPTIONS)

    def parameters(net):
        parts = ((name, found[name].detach(), placements) for name, placements in layouts.items())
        return {
            name: full(part if placements is None else DTensor.from_local(part, mesh["tensor"], placements))
            for name, part, placements in parts
        }

    arguments = averaged(mesh["data"].get_local_rank(), 2, lambda last: contextlib.nullcontext())
    return net, opt, arguments, parameters


def fsdp1(rank, world, partitions=None, **options):
    policy = functools.partial(size_based_auto_wrap_policy, min_num_params=50)
    net = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), auto_wrap_policy=policy, **options)
    opt = FusedAdamW(net.parameters(), **OPTIONS, partitions=partitions)

    def parameters(net):
        with FullyShardedDataParallel.summon_full_params(net):
            return {name.replace("_fsdp_wrapped_module.", ""): full(p) for name, p in net.named_parameters()}

    accumulate = averaged(rank, world, lambda last: contextlib.nullcontext() if last else net.no_sync())
    return net, opt, accumulate, parameters


def fsdp1_flat(rank, world):
    return fsdp1(rank, world, use_orig_params=False)


def fsdp1_originals(rank, world):
    return fsdp1(rank, world, use_orig_params=True)


def fsdp1_not_sharded(rank, world):
    return fsdp1(rank, world, partitions=1, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD)


def fsdp1_hybrid(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    strategy = ShardingStrategy.HYBRID_SHARD
    return fsdp1(rank, world, partitions=2, use_orig_params=True, sharding_strategy=strategy, device_mesh=mesh)


#: By number of ranks: on three, which is no power of two, some hold nothing of a parameter; four make a mesh of two
#: dimensions.
ENGINES = {
    2: [ddp, zero, fsdp2, fsdp2_keeps_parameters, fsdp2_offloads, fsdp1_flat, fsdp1_not_sharded, sequence_parallel],
    3: [ddp, zero_in_buckets, fsdp2_ignores, fsdp1_originals, tensor_parallel],
    4: [zero, hsdp, fsdp1_hybrid, fsdp2, tensor_parallel_and_fsdp2, tensor_parallel_and_ddp],
}
if torch.__version__.startswith("2.9."):  # its DTensor cannot multiply what SequenceParallel has divided
    ENGINES[2].remove(sequence_parallel)
