"""A small network in uneven and empty shards, trained by gradients and losses that add up exactly.

Every gradient is a small multiple of 1/8 and every loss of 1/16: squares, norms and means over ranks are exact in
float64, however many ranks add them up. So a run has the same bits on any number of ranks, and one process, without
torch.distributed, is the reference for all of them.
"""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from greedylr_fused import FusedAdamW, GreedyLR

SAVED, END = 6, 10
LOSSES = [3.0, 2.5, 2.75, 2.0625, 2.0, 2.5, 2.875, 3.5, 1.25, 1.5]
#: Every counter is in use: cooldowns and warmups pass, the window is full, the LR went up and down.
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=4, warmup=1, cooldown=2, reset_start=9)
VARIANTS = {
    "float32": dict(dtype=torch.float32, schedule=SCHEDULE, amsgrad=True),
    "bfloat16": dict(dtype=torch.bfloat16, schedule=SCHEDULE, state_dtype=torch.float32),
    "plain": dict(dtype=torch.float32, schedule=None),
}


class Network(nn.Module):
    """Rows of 5, 5 and 2: of each there are shards of unlike size on 2 to 4 ranks, and empty ones."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.ones(2, 3))

    def forward(self, step):
        """Its gradients are what it is multiplied by, on any engine: averages over ranks are exact as well."""
        generator = torch.Generator().manual_seed(step)
        params = (self.up.weight, self.up.bias, self.scale)
        factors = [torch.randint(-16, 17, param.shape, generator=generator).to(param.dtype) / 8 for param in params]
        return sum((param * factor).sum() for param, factor in zip(params, factors, strict=True))


def network(dtype, seed=0):
    torch.manual_seed(seed)
    return Network().to(dtype)


def optimizer(net, schedule, dtype=None, kind=FusedAdamW, **options):
    matrices = [param for name, param in net.named_parameters() if "bias" not in name]
    biases = [param for name, param in net.named_parameters() if "bias" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": biases, "lr": 0.002, "weight_decay": 0.0}]
    if kind is FusedAdamW:
        options |= {"max_grad_norm": 4.0, "schedule": schedule}
    return kind(groups, lr=0.01, **options)


def sharded(variant, seed=0):
    net = network(VARIANTS[variant]["dtype"], seed)
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return net, optimizer(net, **VARIANTS[variant])


def plain(variant, seed=0):
    net = network(VARIANTS[variant]["dtype"], seed)
    return net, optimizer(net, **VARIANTS[variant])


def train(net, opt, steps):
    for step in steps:
        net(step).backward()
        driven = getattr(opt, "schedule", None) is not None
        opt.step(loss=LOSSES[step]) if driven else opt.step()
        opt.zero_grad()


def seen(net, opt):
    """All that a checkpoint must bring back, by name: of sharded tensors the part on this rank."""
    found = {}
    for name, param in net.named_parameters():
        for key, value in ({"param": param.detach()} | opt.state[param]).items():
            found[f"{name} {key}"] = (value.to_local() if isinstance(value, DTensor) else value).clone()
    if isinstance(opt, FusedAdamW):
        numbers = opt._control.numbers()
        kept = numbers if opt.schedule else [{name: own[name] for name in ("step", "lr")} for own in numbers]
        found["control"] = repr([sorted(own.items()) for own in kept])
    found["lr"] = [float(group["lr"]) for group in opt.param_groups]
    return found


def reference(variant, end):
    """One process that never stopped."""
    net, opt = plain(variant)
    train(net, opt, range(end))
    return seen(net, opt)


def differences(found, wanted, rank=0, world=1):
    """Names of what has other bits, on this rank of those that share the tensors by rows."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    return [name for name, value in wanted.items() if not _same(found[name], _part(value, rank, world))]


def _part(value, rank, world):
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    parts = value.chunk(world)
    return parts[rank] if rank < len(parts) else value[:0]


def _same(a, b):
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def save_sharded(net, opt, path, options=None):
    model, optim = get_state_dict(net, opt, options=options)
    dcp.save({"model": model, "optim": optim}, checkpoint_id=path)


def load_sharded(net, opt, path, options=None):
    model, optim = get_state_dict(net, opt, options=options)
    state = {"model": model, "optim": optim}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(net, opt, model_state_dict=state["model"], optim_state_dict=state["optim"], options=options)
