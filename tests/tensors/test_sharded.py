"""DTensor parameters: alone in this process, and sharded by FSDP2 over two. No test here can hang."""

import datetime

import pytest
import torch
import torch.distributed as dist
from support.ranks import run

from greedylr_fused import FusedAdamW, GreedyLR

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"),
    pytest.mark.timeout(110),
]
WORLD = 2
LIMIT = datetime.timedelta(seconds=30)
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=3)


@pytest.fixture(scope="module")
def mesh():
    """One rank: this process."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=LIMIT)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(mesh, *shape, placements=None):
    from torch.distributed.tensor import Shard, distribute_tensor

    param = torch.nn.Parameter(distribute_tensor(torch.randn(shape), mesh, placements or [Shard(0)]))
    param.grad = distribute_tensor(torch.randn(shape), mesh, placements or [Shard(0)])
    return param


def twins(params):
    found = [torch.nn.Parameter(param.full_tensor().detach().clone()) for param in params]
    for twin, param in zip(found, params, strict=True):
        twin.grad = param.grad.full_tensor().clone()
    return found


def assert_equal(params, others, opt, other):
    for param, twin in zip(params, others, strict=True):
        assert torch.equal(param.full_tensor(), twin)
        for name, value in other.state[twin].items():
            own = opt.state[param][name]
            assert torch.equal(own.full_tensor() if name != "step" else own, value)


def test_a_dtensor_is_updated_within_torch_compile(mesh):
    params = [sharded(mesh, *shape) for shape in ((6, 3), (5,))]
    plain = twins(params)
    opt, other = (FusedAdamW(p, lr=0.1, schedule=SCHEDULE, max_grad_norm=1.0) for p in (params, plain))
    compiled = torch.compile(lambda loss: opt.step(loss=loss), backend="eager")
    for loss in (3.0, 2.0, 4.0):
        compiled(torch.tensor(loss))
        other.step(loss=loss)
    assert_equal(params, plain, opt, other)


def test_a_dtensor_is_updated_as_its_values_are(mesh, backend):
    params = [sharded(mesh, *shape) for shape in ((6, 3), (5,), (0, 2), (1,))]
    plain = twins(params)
    opt, other = (
        FusedAdamW(p, lr=0.1, amsgrad=True, schedule=SCHEDULE, max_grad_norm=1.0, backend=backend)
        for p in (params, plain)
    )
    addresses = [param._local_tensor.data_ptr() for param in params]
    for loss in (3.0, 2.0, 4.0):
        opt.step(loss=loss)
        other.step(loss=loss)
        assert_equal(params, plain, opt, other)
    assert [param._local_tensor.data_ptr() for param in params] == addresses
    for param in params:
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            moment = opt.state[param][name]
            assert (moment.device_mesh, moment.placements) == (param.device_mesh, param.placements)


def test_gradients_in_other_strides_and_places(mesh):
    params = [sharded(mesh, 6, 4), sharded(mesh, 3)]
    opt = FusedAdamW(params, lr=0.1)
    plain = twins(params)
    other = FusedAdamW(plain, lr=0.1)
    for change in (lambda g: g, lambda g: g.t().contiguous().t() if g.dim() == 2 else g, lambda g: g.clone()):
        for param, twin in zip(params, plain, strict=True):
            param.grad = change(param.grad)
            twin.grad = param.grad.full_tensor().clone()
        opt.step()
        other.step()
        assert_equal(params, plain, opt, other)
    params[0].grad = plain[0].grad = None
    opt.step()
    other.step()
    assert_equal(params, plain, opt, other)


def test_what_is_replaced_is_noticed(mesh):
    params = [sharded(mesh, 6, 4)]
    opt = FusedAdamW(params, lr=0.1)
    plain = twins(params)
    other = FusedAdamW(plain, lr=0.1)
    changes = (
        lambda p, o: setattr(p, "_local_tensor", p._local_tensor.clone()),
        lambda p, o: setattr(o.state[p]["exp_avg"], "_local_tensor", o.state[p]["exp_avg"]._local_tensor.clone()),
        lambda p, o: o.state[p].update(exp_avg_sq=o.state[p]["exp_avg_sq"].clone()),
    )
    for change in changes:
        opt.step()
        other.step()
        change(params[0], opt)
    opt.step()
    other.step()
    assert_equal(params, plain, opt, other)


def test_autograd_is_told(mesh):
    param = sharded(mesh, 4)
    opt = FusedAdamW([param], lr=0.1)
    loss = (param * param).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_are_distributed_as_their_parameters(mesh, backend):
    from torch.distributed.tensor import distribute_tensor

    param, half = sharded(mesh, 6, 3), torch.zeros(6, 3, dtype=torch.bfloat16)
    copy = torch.nn.Parameter(distribute_tensor(half, mesh, param.placements))
    opt = FusedAdamW([param], lr=0.1, backend=backend)
    opt.keep_copies([(param, copy)])
    squares = (copy * copy).sum()
    opt.step()
    assert torch.equal(copy.full_tensor(), param.full_tensor().bfloat16())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with pytest.raises(
        RuntimeError, match="expected a copy with the placements of its DTensor parameter, .*got one that is no DTensor"
    ):
        opt.keep_copies([(param, half)])


def test_other_placements_are_brought_into_the_parameters(mesh, backend):
    from torch.distributed.tensor import Replicate

    params = [sharded(mesh, 4), sharded(mesh, 3, placements=[Replicate()])]
    plain = twins(params)
    opt, other = (FusedAdamW(p, lr=0.1, max_grad_norm=0.5, backend=backend) for p in (params, plain))
    for _ in range(3):
        for param, twin in zip(params, plain, strict=True):
            param.grad = param.grad.redistribute(mesh, [Replicate()])
            twin.grad = param.grad.full_tensor().clone()
        opt.step()
        other.step()
        assert_equal(params, plain, opt, other)


def test_a_gradient_of_another_mesh_is_refused(mesh):
    from torch.distributed.device_mesh import init_device_mesh

    param = sharded(mesh, 4)
    opt = FusedAdamW([param], lr=0.1)
    opt.step()
    before = param.full_tensor().clone()
    param.grad = sharded(init_device_mesh("cpu", (1, 1)), 4, placements=[*param.placements, *param.placements]).grad
    with pytest.raises(
        RuntimeError, match=r"expected a gradient .*got one with placements .*Shard.* on .*redistribute"
    ):
        opt.step()
    param.grad = None
    opt.step()
    assert torch.equal(param.full_tensor(), before)


@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_under_way_are_waited_for(mesh, backend, distributed):
    """What functional collectives return is a tensor without memory of its own."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
    from torch.distributed.tensor import DTensor, Shard

    param = sharded(mesh, 4) if distributed else torch.nn.Parameter(torch.randn(4))
    twin = torch.nn.Parameter(param.full_tensor().detach().clone() if distributed else param.detach().clone())
    opt, other = (FusedAdamW([p], lr=0.1, max_grad_norm=1.0, backend=backend) for p in (param, twin))
    for step in range(3):
        grad = torch.randn(4)
        part = all_reduce(grad, "sum", mesh)
        assert type(part) is AsyncCollectiveTensor
        param.grad = DTensor.from_local(part, mesh, [Shard(0)], run_check=False) if distributed else part
        twin.grad = grad
        opt.step()
        other.step()
        assert torch.equal(param.full_tensor() if distributed else param, twin), step


def test_a_checkpoint_of_dtensors(mesh):
    params = [sharded(mesh, 6, 4), sharded(mesh, 3)]
    opt = FusedAdamW(params, lr=0.1, schedule=SCHEDULE)
    opt.step(loss=3.0)
    saved = opt.state_dict()
    again = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = FusedAdamW(again, lr=0.1, schedule=SCHEDULE)
    other.load_state_dict(saved)
    for param, twin in zip(params, again, strict=True):
        twin.grad = param.grad.clone()
    opt.step(loss=2.0)
    other.step(loss=2.0)
    for param, twin in zip(params, again, strict=True):
        assert torch.equal(param.full_tensor(), twin.full_tensor())
    assert opt.read_lr() == other.read_lr()


def test_plain_and_distributed_parameters_together(mesh):
    plain = torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.ones(3)
    opt = FusedAdamW([sharded(mesh, 4), plain], lr=0.1)
    plain_alone = FusedAdamW([plain], lr=0.1)
    assert plain_alone is not opt
    opt.step()
    assert (plain < 1).all()


def model():
    """Layers that two ranks cannot share evenly, and one of which the second gets nothing."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    for layer in (net[0], net[2], net):
        fully_shard(layer)
    return net


def backward(net, x):
    loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss.detach()


def fully_sharded(rank):
    net, twin = model(), model()
    opt = FusedAdamW(net.parameters(), lr=0.01, schedule=SCHEDULE)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    worst, lrs = 0.0, []
    for _ in range(8):
        x = torch.randn(6, 4, generator=generator)
        opt.zero_grad()
        torchs.zero_grad()
        loss = backward(net, x)
        backward(twin, x)
        torchs.param_groups[0]["lr"] = opt.read_lr()[0]
        opt.step(loss=loss)
        torchs.step()
        lrs.append(opt.read_lr()[0].hex())
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            worst = max(worst, (a - b).detach().to_local().abs().sum().item())
    assert worst < 1e-5
    assert len(set(lrs)) > 1
    empty = [param.to_local().numel() for param in net.parameters()].count(0)
    assert empty == (0, 2)[rank], "the second rank holds nothing of two parameters"
    assert {float(own["step"]) for own in opt.state.values()} == {8.0}
    return lrs


def test_fsdp2_equals_torch_adamw():
    first, second = run(fully_sharded, WORLD)
    assert first == second


def first_step_at_lr_0(rank):
    """With gradients on one rank only it must not be taken for the materialisation of state."""
    net = model()
    backward(net, torch.ones(6, 4))
    fresh = FusedAdamW(net.parameters(), lr=0.0)
    fresh.step()
    assert {float(own["step"]) for own in fresh.state.values()} == {1.0}


def test_all_ranks_agree_whether_state_is_materialised():
    run(first_step_at_lr_0, WORLD)
