"""A run that changes its engine at every checkpoint: one process, DDP, FSDP2, FSDP1 in both forms, and back.

Two ranks, with exact gradients (see resharding.py): after any number of moves it has the bits of one process alone.
"""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from resharding import LOSSES, VARIANTS, differences, load_sharded, network, save_sharded
from support.foreign_warnings import FSDP1, SINGLE_PROCESS, TYPED_STORAGE
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
    fully_shard,
)

from greedylr_fused import FusedAdamW

WORLD = 2
FULL = StateDictOptions(full_state_dict=True)
pytestmark = [
    FSDP1,
    pytest.mark.filterwarnings("ignore:.*ShardedTensor.* deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`_get_pg_default_device`:UserWarning"),  # of FSDP1 itself
    pytest.mark.filterwarnings("ignore:Multiple backends are registered:UserWarning"),
    TYPED_STORAGE,
]


def single(net):
    return net


def ddp(net):
    return nn.parallel.DistributedDataParallel(net)


def fsdp2(net):
    return fully_shard(net, mesh=init_device_mesh("cpu", (WORLD,)))


def flat(net, **options):
    mesh = init_device_mesh("cpu", (WORLD,))
    return FullyShardedDataParallel(net, device_mesh=mesh, device_id=torch.device("cpu"), **options)


def original(net):
    return flat(net, use_orig_params=True)


def build(engine, variant, seed=1, kind=FusedAdamW):
    options = dict(VARIANTS[variant])
    net = engine(network(options.pop("dtype"), seed))
    if kind is not FusedAdamW:
        options = {"fused": True}
    elif engine is single and dist.is_initialized():
        options["process_group"] = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    if kind is FusedAdamW:
        options["max_grad_norm"] = 4.0
    return net, kind(net.parameters(), lr=0.01, weight_decay=0.1, **options)


def train(net, opt, steps):
    for step in steps:
        net(step).backward()
        opt.step(loss=LOSSES[step % len(LOSSES)]) if getattr(opt, "schedule", None) else opt.step()
        opt.zero_grad()


def to_file(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path)
    dist.barrier()


def from_file(path):
    return torch.load(path, weights_only=True)


def by_name(net, opt):
    """Model and optimizer in full, every tensor by the name that the parameter has without an engine."""
    return {"model": get_model_state_dict(net, options=FULL), "optim": get_optimizer_state_dict(net, opt, options=FULL)}


def save_named(net, opt, path):
    to_file(by_name(net, opt), path)


def load_named(net, opt, path):
    state = from_file(path)
    set_model_state_dict(net, state["model"], options=FULL)
    set_optimizer_state_dict(net, opt, state["optim"], options=FULL)


def save_plain(net, opt, path):
    """As everyone saves without shards."""
    to_file({"model": getattr(net, "module", net).state_dict(), "optim": opt.state_dict()}, path)


def load_plain(net, opt, path):
    state = from_file(path)
    getattr(net, "module", net).load_state_dict(state["model"])
    opt.load_state_dict(state["optim"])


def whole_type(net):
    kinds = FullStateDictConfig(), FullOptimStateDictConfig(rank0_only=False)
    return FullyShardedDataParallel.state_dict_type(net, StateDictType.FULL_STATE_DICT, *kinds)


def save_whole(net, opt, path):
    """FSDP1's own way."""
    with whole_type(net):
        optim = FullyShardedDataParallel.optim_state_dict(net, opt)
        to_file({"model": net.state_dict(), "optim": optim}, path)


def load_whole(net, opt, path):
    state = from_file(path)
    with whole_type(net):
        net.load_state_dict(state["model"])
        opt.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(net, opt, state["optim"]))


#: One step on each engine, how it is saved, and how the next loads that. FSDP1 with use_orig_params is not saved whole:
#: on CPUs PyTorch returns one moment in place of the others, of its own AdamW too.
MOVES = [
    (single, save_plain, load_plain),
    (ddp, save_named, load_named),
    (fsdp2, save_named, load_whole),
    (flat, save_whole, load_whole),
    (original, save_sharded, load_sharded),
    (flat, save_sharded, load_sharded),
    (fsdp2, save_sharded, load_sharded),
    (original, save_sharded, load_sharded),
    (fsdp2, save_named, load_named),
    (ddp, save_plain, load_plain),
    (single, save_named, load_whole),
    (flat, save_whole, load_named),
    (single, None, None),
]


def in_full(state):
    """The values of a checkpoint by name."""
    found = {f"model {name}": value.clone() for name, value in state["model"].items()}
    for name, own in state["optim"]["state"].items():
        found |= {f"{name} {key}": value.clone() for key, value in own.items()}
    (group,) = state["optim"]["param_groups"]
    return found | {"lr": float(group["lr"]), "control": repr(sorted(group.get("control", {}).items()))}


def move(rank, folder, wanted):
    """A step on each engine in turn."""
    for variant, values in wanted.items():
        net, opt = build(single, variant, seed=0)
        for step, (_, save, load) in enumerate(MOVES[:-1]):
            train(net, opt, [step])
            path = f"{folder}/{variant} {step}"
            save(net, opt, path)
            net, opt = build(MOVES[step + 1][0], variant)
            load(net, opt, path)
        assert differences(in_full(by_name(net, opt)), values) == [], variant


def alone(variant):
    net, opt = build(single, variant, seed=0)
    train(net, opt, range(len(MOVES) - 1))
    return in_full(by_name(net, opt))


@SINGLE_PROCESS  # the reference
def test_from_engine_to_engine(ranks, tmp_path):
    ranks(move, str(tmp_path), {variant: alone(variant) for variant in VARIANTS})


#: How torch.optim.AdamW and a plain FusedAdamW hand over to each other.
HANDS = {
    "single": (single, save_plain, load_plain),
    "ddp": (ddp, save_plain, load_plain),
    "ddp named": (ddp, save_named, load_named),
    "fsdp2": (fsdp2, save_sharded, load_sharded),
    "fsdp2 named": (fsdp2, save_named, load_named),
    "flat": (flat, save_whole, load_whole),
    "original": (original, save_sharded, load_sharded),
}


def values(net, opt):
    """What this rank holds of parameters and states, as plain tensors."""
    found = {}
    for i, param in enumerate(net.parameters()):
        for key, value in ({"param": param.detach()} | opt.state[param]).items():
            found[f"{i} {key}"] = (value.to_local() if hasattr(value, "to_local") else value).clone()
    return found | {"lr": [float(group["lr"]) for group in opt.param_groups]}


def hand_over(rank, folder):
    """AdamW, FusedAdamW, AdamW: after loading, the next has what the one before had."""
    for name, (engine, save, load) in HANDS.items():
        kinds = [torch.optim.AdamW, FusedAdamW, torch.optim.AdamW]
        net, opt = build(engine, "plain", seed=0, kind=kinds[0])
        for step, kind in enumerate(kinds):
            train(net, opt, [step])
            path = f"{folder}/{name} {step}"
            save(net, opt, path)
            before = values(net, opt)
            net, opt = build(engine, "plain", kind=kinds[(step + 1) % 3])
            load(net, opt, path)
            assert differences(values(net, opt), before) == [], (name, kind, step)
    driven_from_torch(f"{folder}/fsdp2 0")


def driven_from_torch(path):
    """A schedule that starts from a sharded checkpoint of AdamW, in which it finds no number of its own."""
    net, opt = build(fsdp2, "float32")
    opt.set_lr(0.02)
    model, optim = get_state_dict(net, opt)
    state = {"model": model, "optim": optim}
    dcp.load(state, checkpoint_id=path, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_state_dict(net, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])
    train(net, opt, range(1))
    metrics = opt.metrics()
    assert opt.state[next(net.parameters())]["step"].item() == metrics.step == 2
    assert metrics.best == LOSSES[0] and metrics.lr == (0.01 / 0.7,)


def test_torchs_adamw_hands_over_and_takes_back(ranks, tmp_path):
    ranks(hand_over, str(tmp_path))
