"""DeviceSchedule on two ranks: the mean of their losses decides, as in FusedAdamW, and each holds the same bits."""

import torch
from torch.distributed import new_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from greedylr_fused import DeviceSchedule, FusedAdamW, Muon
from greedylr_fused.schedules import Cosine, GreedyLR

WORLD = 2
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=3, base=Cosine(20))


def param():
    made = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    made.grad = torch.ones(20)
    return made


def losses_differ(rank):
    opt = torch.optim.AdamW([param()], lr=torch.tensor(0.1), fused=True)
    schedule = DeviceSchedule(opt, SCHEDULE)
    ours = FusedAdamW([param()], lr=0.1, schedule=SCHEDULE)
    trace = []
    for step in range(8):
        opt.step()
        for own in (schedule, ours):
            own.observe(3.1 - 0.3 * step + 0.77 * rank * (-1) ** step, weight=1 + 3 * rank)
            own.step()
        assert schedule.read_lr() == ours.read_lr()
        assert schedule.metrics().loss == ours.metrics().loss
        trace.append((schedule.read_lr()[0].hex(), schedule.metrics().loss.hex(), opt.param_groups[0]["lr"].item()))
    assert len(set(trace)) == len(trace)
    return trace


def test_both_ranks_decide_by_the_mean(ranks):
    first, second = ranks(losses_differ)
    assert first == second


def each_for_itself(rank):
    """A group of one rank: the losses of the other do not count."""
    groups = [new_group([other]) for other in range(WORLD)]
    opt = torch.optim.SGD([param()], lr=torch.tensor(0.1), fused=True)
    schedule = DeviceSchedule(opt, GreedyLR(patience=0, smooth=False), process_group=groups[rank])
    for loss in (3.0, 2.0, 1.0) if rank else (3.0, 4.0, 5.0):
        schedule.step(loss=loss)
    (lr,) = schedule.read_lr()
    assert lr > 0.1 if rank else lr < 0.1


def test_a_group_of_its_own(ranks):
    ranks(each_for_itself)


def pair(rank):
    """Muon and FusedAdamW on replicas: the mean loss decides both LRs, on each rank the same."""
    values = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, generator=values)) for shape in ((6, 4), (4,))]
    muon, adamw = Muon(params[:1], lr=torch.tensor(0.02)), FusedAdamW(params[1:], lr=torch.tensor(3e-4))
    schedule = DeviceSchedule([muon, adamw], GreedyLR(patience=0, factor=0.7, smooth=True, window_size=3))
    ours = FusedAdamW([param()], lr=0.02, schedule=schedule.schedule)
    for step in range(10):
        for each in params:
            each.grad = torch.randn(each.shape, generator=values)  # as all ranks have them after DDP
        muon.step()
        adamw.step()
        for own in (schedule, ours):
            own.step(loss=3.1 - 0.3 * step + 0.77 * rank * (-1) ** step)
        assert schedule.read_lr()[0] == ours.read_lr()[0]
    assert schedule.read_lr()[0] != 0.02
    return schedule.read_lr(), [each.tolist() for each in params], repr(schedule.state_dict()["control"])


def test_two_optimizers_have_the_same_bits_on_both_ranks(ranks):
    first, second = ranks(pair)
    assert first == second


def sharded_pair(rank):
    """Parameters in parts, as FSDP2 has them: the whole matrix counts, within the rounding of 16-bit products."""
    mesh = init_device_mesh("cpu", (WORLD,))
    values = torch.Generator().manual_seed(3)
    whole = [torch.nn.Parameter(torch.randn(shape, generator=values)) for shape in ((6, 4), (4,))]
    parts = [torch.nn.Parameter(distribute_tensor(each.detach().clone(), mesh, [Shard(0)])) for each in whole]
    schedules = []
    for params in (whole, parts):
        muon = Muon(params[:1], lr=torch.tensor(0.02), ns_steps=1)  # five would make roundings 500 times as large
        adamw = FusedAdamW(params[1:], lr=torch.tensor(0.01))
        schedules.append(DeviceSchedule([muon, adamw], GreedyLR(patience=0, smooth=False)))
    for step in range(4):
        grads = [torch.randn(each.shape, generator=values) for each in whole]
        for params, schedule in zip((whole, parts), schedules, strict=True):
            for each, grad in zip(params, grads, strict=True):
                each.grad = grad if each in set(whole) else distribute_tensor(grad, mesh, [Shard(0)])
            for optimizer in schedule.optimizers:
                optimizer.step()
            schedule.step(loss=float(step + rank))
    assert schedules[0].read_lr() == schedules[1].read_lr()
    for each, part in zip(whole, parts, strict=True):
        torch.testing.assert_close(part.full_tensor(), each, rtol=0, atol=4 * 0.02 * 2**-6)


def test_two_optimizers_over_parts_of_parameters(ranks):
    ranks(sharded_pair)
