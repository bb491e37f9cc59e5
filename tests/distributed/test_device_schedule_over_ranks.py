"""DeviceSchedule on two ranks: the mean of their losses decides, as in FusedAdamW, and each holds the same bits."""

import torch
from torch.distributed import new_group

from greedylr_fused import DeviceSchedule, FusedAdamW
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
