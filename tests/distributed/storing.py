"""A small network whose states are stored in 8 bits and with remainders, as in `resharding`: of any number of ranks it
has the bits of one.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

from greedylr_fused import FusedAdamW

I8 = torch.int8
STORED = {"state_dtype": I8, "master_weights": "int8"}


class Network(nn.Module):
    """Rows that 2 to 5 ranks share unevenly, or some have none of; `row` keeps float32 moments."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.randn(66, 128))
        self.cube = nn.Parameter(torch.randn(3, 24, 64))
        self.row = nn.Parameter(torch.randn(7))

    def forward(self, step):
        factors = gradients(self, step)
        return sum((param * factor).sum() for param, factor in zip(self.parameters(), factors, strict=True))


def gradients(net, step):
    """Small multiples of 1/8, which any number of ranks averages exactly; many of them far below the largest."""
    generator = torch.Generator().manual_seed(step)
    found = []
    for param in net.parameters():
        whole = torch.randint(-16, 17, param.shape, generator=generator) / 8.0
        small = torch.randint(0, 2, param.shape, generator=generator) * 12
        found.append(torch.ldexp(whole, -small).to(param.dtype))
    return found


def network(seed=0):
    torch.manual_seed(seed)
    return Network().bfloat16()


def optimizer(net, **options):
    return FusedAdamW(net.named_parameters(), lr=0.01, weight_decay=0.1, **(STORED | options))


def plain(seed=0, **options):
    net = network(seed)
    return net, optimizer(net, **options)


def sharded(seed=0, mesh=None, **options):
    net = network(seed)
    fully_shard(net, mesh=mesh or init_device_mesh("cpu", (dist.get_world_size(),)))
    return net, optimizer(net, **options)


def placed(mesh, placements, seed=0, **options):
    """A network whose parameters are divided alike, and the placements of each: vectors only along their one."""
    net = network(seed)
    for name, param in list(net.named_parameters()):
        own = [place if getattr(place, "dim", 0) < param.dim() else Replicate() for place in placements]
        setattr(net, name, nn.Parameter(distribute_tensor(param.detach(), mesh, own, src_data_rank=None)))
    return net, optimizer(net, **options)


def train_placed(net, opt, steps, loss=None):
    for step in steps:
        for param, factor in zip(net.parameters(), gradients(net, step), strict=True):
            if hasattr(param, "placements"):
                factor = distribute_tensor(factor, param.device_mesh, param.placements, src_data_rank=None)
            param.grad = factor
        opt.step(loss=loss)


def unlike(found, wanted):
    """Names of what has other bits here than this rank's part of what one process has."""
    (net, opt), (whole_net, whole_opt) = found, wanted
    names = []
    for (name, param), whole in zip(net.named_parameters(), whole_net.parameters(), strict=True):
        own, other = opt.state[param], whole_opt.state[whole]
        assert own.keys() == other.keys(), (name, own.keys(), other.keys())
        for key, value in {"param": param.detach(), **own}.items():
            theirs = whole.detach() if key == "param" else other[key]
            if hasattr(value, "placements"):
                assert value.placements == param.placements and value.shape == theirs.shape
                theirs = distribute_tensor(theirs, param.device_mesh, param.placements, src_data_rank=None).to_local()
                value = value.to_local()
            if value.dtype != theirs.dtype or not torch.equal(value, theirs):
                names.append(f"{name} {key}")
    return names
