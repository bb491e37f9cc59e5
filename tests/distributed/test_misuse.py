"""Parameters and groups whose norm would be wrong are refused, and ranks that differ on purpose are not."""

import pytest
import torch
import torch.distributed as dist
from support.ranks import run
from torch.distributed.device_mesh import init_device_mesh

from greedylr_fused import FusedAdamW, GreedyLR

CLIPS = dict(lr=0.1, schedule=GreedyLR(patience=0, factor=0.5, smooth=False), max_grad_norm=1.0)
SHAPE = (4, 2)


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


def error_of(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


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
    return {
        "unsaid": error_of(lambda: unsaid.step(loss=1.0)),
        "said": norm(said, loss=1.0),
        "replicas": norm(replicas, loss=1.0),
    }


def outside(rank):
    from torch.distributed.tensor import Replicate, Shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    group = mesh["tensor"].get_group()
    divided = FusedAdamW([placed(mesh, Shard(0), Replicate())], **CLIPS, process_group=group)
    enclosed = FusedAdamW([placed(mesh, Replicate(), Shard(0))], **CLIPS, process_group=group)
    return error_of(lambda: divided.step(loss=1.0)), norm(enclosed, loss=1.0)


def one_mesh(rank):
    """The group of a mesh of one dimension is its own."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    group = dist.new_group([0, 1, 2, 3])
    opt = FusedAdamW([placed(DeviceMesh.from_group(group, "cpu"), Shard(0))], **CLIPS)
    return norm(opt, loss=1.0), opt._engine.ranks.group is group


def unlike_on_purpose(rank):
    """Frozen parameters, and without a schedule losses, are each rank's own."""
    frozen = plain(seed=rank).requires_grad_(False)
    frozen.grad = None
    opt = FusedAdamW([plain(), frozen], **CLIPS)
    undriven = FusedAdamW([plain()], lr=0.1, max_grad_norm=1.0)
    conjugated = torch.nn.Parameter(torch.randn(SHAPE, dtype=torch.complex64).conj())
    conjugated.grad = torch.ones_like(conjugated)
    return norm(opt, loss=1.0), norm(undriven, loss=float(rank)), norm(FusedAdamW([conjugated], **CLIPS), loss=1.0)


def asked_early(rank):
    """Looking whether ranks agree that were initialised after the first step leaves the shares in the norm right."""
    dist.destroy_process_group()
    opt = FusedAdamW([plain()], **CLIPS)
    opt.step(loss=1.0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # each alone, but another world
    opt.check_ranks_agree()
    return opt._engine.table is None, norm(opt, loss=1.0)


def warm_up_after_a_load(rank):
    """A rank without parameters cannot tell a step at LR 0 from that of distributed checkpointing, and need not."""
    found = []
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
        found.append(opt.metrics().step)
    return found


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
    return opt.metrics().loss


CASES = (stages, outside, one_mesh, unlike_on_purpose, asked_early, warm_up_after_a_load, observed_on_one_rank)


def cases(rank):
    return {case.__name__: case(rank) for case in sorted(CASES, key=lambda case: case is asked_early)}


@pytest.fixture(scope="module")
def results():
    ranks = run(cases, 4)
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


FULL = 8**0.5  # of ones in one parameter


def test_stages_of_a_pipeline_must_be_said_to_be(results):
    for found in results["stages"]:
        assert "parts of DTensors that are others on rank 2" in found["unsaid"] and "partitions=" in found["unsaid"]
        assert found["said"] == pytest.approx(2**0.5 * FULL) and found["replicas"] == pytest.approx(3**0.5 * FULL)


def test_a_group_must_enclose_the_parts(results):
    for rank, (error, enclosed) in enumerate(results["outside"]):
        assert "parts on the ranks [0, 2]" in error or "parts on the ranks [1, 3]" in error, rank
        assert enclosed == pytest.approx(FULL)


def test_a_mesh_of_one_dimension_has_its_group(results):
    assert results["one_mesh"] == [(pytest.approx(FULL), True)] * 4


def test_ranks_may_differ_where_it_does_not_matter(results):
    assert results["unlike_on_purpose"] == [(pytest.approx(FULL),) * 3] * 4


def test_a_question_asked_early_does_no_harm(results):
    assert results["asked_early"] == [(True, pytest.approx(FULL))] * 4


def test_a_step_at_lr_0_is_one_on_every_rank(results):
    # Without a schedule a checkpoint counts steps by parameter: a rank that has none begins at 0.
    assert results["warm_up_after_a_load"] == [[2, 2, 2]] * 2 + [[1, 2, 2]] * 2


def test_a_loss_that_waits_does_not_change_what_checkpointing_does(results):
    assert results["observed_on_one_rank"] == [(3.0 + 3 * 5.0) / 4] * 4
