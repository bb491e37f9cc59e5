"""Parameters and groups whose norm would be wrong are refused, and ranks that differ on purpose are not."""

import pytest
import torch
import torch.distributed as dist
from support.errors import error_of
from support.ranks import run
from torch.distributed.device_mesh import init_device_mesh

from greedylr_fused import FusedAdamW, GreedyLR

CLIPS = dict(lr=0.1, schedule=GreedyLR(patience=0, factor=0.5, smooth=False), max_grad_norm=1.0)
SHAPE = (4, 2)
WORLD = 4
FULL = pytest.approx(8**0.5)  # norm of ones in one parameter


def placed(mesh, *placements, seed=0):
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(seed)
    param = torch.nn.Parameter(distribute_tensor(torch.randn(SHAPE), mesh, placements, src_data_rank=None))
    param.grad = distribute_tensor(torch.ones(SHAPE), mesh, placements, src_data_rank=None)
    return param


def plain(seed=0):
    torch.manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(SHAPE))
    param.grad = torch.ones(SHAPE)
    return param


def norm(opt, **loss):
    opt.step(**loss)
    opt.check_ranks_agree()
    return opt.metrics().grad_norm


def stages(rank):
    """Two stages of a pipeline, each sharded over the ranks of its own; then the same parameters on both."""
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    stage = mesh["stage"].get_local_rank()
    unsaid = FusedAdamW([placed(mesh["data"], Shard(0), seed=stage)], **CLIPS)
    said = FusedAdamW([placed(mesh["data"], Shard(0), seed=stage)], **CLIPS, partitions=2)
    replicas = FusedAdamW([placed(mesh["data"], Shard(0)), placed(mesh, Shard(0), Shard(1)), plain()], **CLIPS)
    error = error_of(lambda: unsaid.step(loss=1.0))
    assert (
        "expected replicas in the process group, got parts of DTensors on rank 2 that differ" in error
        and "partitions=" in error
    )
    assert norm(said, loss=1.0) == pytest.approx((2 * 8) ** 0.5)
    assert norm(replicas, loss=1.0) == pytest.approx((3 * 8) ** 0.5)


def test_stages_of_a_pipeline_must_be_said_to_be(ranks):
    ranks(stages)


def outside(rank):
    from torch.distributed.tensor import Replicate, Shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    group = mesh["tensor"].get_group()
    divided = FusedAdamW([placed(mesh, Shard(0), Replicate())], **CLIPS, process_group=group)
    enclosed = FusedAdamW([placed(mesh, Replicate(), Shard(0))], **CLIPS, process_group=group)
    error = error_of(lambda: divided.step(loss=1.0))
    assert "encloses the ranks [0, 2]" in error or "encloses the ranks [1, 3]" in error
    assert norm(enclosed, loss=1.0) == FULL


def test_a_group_must_enclose_the_parts(ranks):
    ranks(outside)


def one_mesh(rank):
    """The group of a mesh of one dimension is its own."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    group = dist.new_group([0, 1, 2, 3])
    opt = FusedAdamW([placed(DeviceMesh.from_group(group, "cpu"), Shard(0))], **CLIPS)
    assert norm(opt, loss=1.0) == FULL and opt._engine.ranks.group is group


def test_a_mesh_of_one_dimension_has_its_group(ranks):
    ranks(one_mesh)


def unlike_on_purpose(rank):
    """Frozen parameters, and without a schedule losses, are each rank's own."""
    frozen = plain(seed=rank).requires_grad_(False)
    frozen.grad = None
    opt = FusedAdamW([plain(), frozen], **CLIPS)
    undriven = FusedAdamW([plain()], lr=0.1, max_grad_norm=1.0)
    conjugated = torch.nn.Parameter(torch.randn(SHAPE, dtype=torch.complex64).conj())
    conjugated.grad = torch.ones_like(conjugated)
    assert norm(opt, loss=1.0) == FULL
    assert norm(undriven, loss=float(rank)) == FULL
    assert norm(FusedAdamW([conjugated], **CLIPS), loss=1.0) == FULL


def test_ranks_may_differ_where_it_does_not_matter(ranks):
    ranks(unlike_on_purpose)


def asked_early(rank):
    """Looking whether ranks agree that were initialised after the first step leaves the shares in the norm right."""
    dist.destroy_process_group()
    opt = FusedAdamW([plain()], **CLIPS)
    opt.step(loss=1.0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # each alone, but another world
    opt.check_ranks_agree()
    assert opt._engine.table is None
    assert norm(opt, loss=1.0) == FULL


def test_a_question_asked_early_does_no_harm():
    run(asked_early, WORLD)  # processes of its own, whose group it leaves


def warm_up_after_a_load(rank):
    """A rank without parameters cannot tell a step at LR 0 from that of distributed checkpointing, and need not."""
    for change in ("load", "group", "copy"):
        params = [plain()] if rank < 2 else []
        opt = FusedAdamW([{"params": params}], lr=0.1, max_grad_norm=1.0, partitions=4)
        opt.step()
        if change == "load":
            opt.load_state_dict(opt.state_dict())
        elif change == "group":
            opt.add_param_group({"params": [plain(1)] if rank < 2 else []})
        for group in opt.param_groups:
            group["lr"] = 0.0
        opt.step()
        # Without a schedule a checkpoint counts steps by parameter: a rank that has none begins at 0.
        assert opt.metrics().step == (1 if change == "load" and rank >= 2 else 2), change


def test_a_step_at_lr_0_is_one_on_every_rank(ranks):
    ranks(warm_up_after_a_load)


def observed_on_one_rank(rank):
    """A loss that waits for the next step does not make distributed checkpointing's step another on this rank."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    net = torch.nn.Linear(4, 4)
    fully_shard(net)
    opt = FusedAdamW(net.parameters(), **CLIPS)
    if rank == 0:
        opt.observe(3.0)
    get_optimizer_state_dict(net, opt)
    net(torch.ones(2, 4)).sum().backward()
    if rank:
        opt.observe(5.0)
    opt.step()
    assert opt.metrics().loss == (3.0 + 3 * 5.0) / WORLD


def test_a_loss_that_waits_does_not_change_what_checkpointing_does(ranks):
    ranks(observed_on_one_rank)
