"""Two ranks: each must hold the same bits of the learning rate."""

import pytest
import torch

from greedylr_fused import FusedAdamW, GreedyLR

WORLD = 2
SCHEDULE = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=3)


def params(n=20):
    return [torch.nn.Parameter(torch.linspace(-1, 1, n))]


def losses_differ(rank):
    """Each rank sees other losses, with other weights."""
    opt = FusedAdamW(params(), lr=0.1, schedule=SCHEDULE)
    trace = []
    for step in range(8):
        opt.param_groups[0]["params"][0].grad = torch.ones(20)
        opt.observe(3.1 - 0.3 * step + 0.77 * rank * (-1) ** step, weight=1 + 3 * rank)
        opt.step()
        trace.append((opt.read_lr()[0].hex(), opt.metrics().loss.hex(), opt.metrics().best.hex()))
        want = ((3.1 - 0.3 * step) + 4 * (3.1 - 0.3 * step + 0.77 * (-1) ** step)) / 5
        assert opt.metrics().loss == pytest.approx(want, rel=1e-14)
    assert len({lr for lr, *_ in trace}) > 1
    return trace


def test_every_rank_decides_from_the_weighted_mean(ranks):
    first, second = ranks(losses_differ)
    assert first == second


def a_loss_is_not_finite_on_one_rank(rank):
    opt = FusedAdamW(params(), lr=0.1, schedule=SCHEDULE)
    lrs = []
    for loss in (3.0, float("nan") if rank else 2.5, 2.0, float("inf") if not rank else 1.0, 0.5):
        opt.param_groups[0]["params"][0].grad = torch.ones(20)
        opt.step(loss=loss)
        lrs.append(opt.read_lr()[0])
    assert lrs[1] < lrs[0] and lrs[3] < lrs[2] and lrs[4] > lrs[3]
    return lrs


def test_a_nonfinite_loss_on_one_rank_is_bad_on_all(ranks):
    first, second = ranks(a_loss_is_not_finite_on_one_rank)
    assert first == second


def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(6, 8, 4, generator=generator, dtype=torch.float64)


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).double()


def train(net, batches):
    opt = FusedAdamW(net.parameters(), lr=0.01, schedule=SCHEDULE, max_grad_norm=0.5)
    lrs = []
    for x in batches:
        opt.zero_grad()
        loss = (net(x) - x).square().mean()
        loss.backward()
        opt.step(loss=loss)
        lrs.append(opt.read_lr()[0])
    return lrs, [p.detach().flatten().tolist() for p in net.parameters()]


def data_parallel(rank):
    net = torch.nn.parallel.DistributedDataParallel(model())
    return train(net, [x[rank::WORLD] for x in batch()])


def test_data_parallel_equals_one_process(ranks):
    (lrs, values), (other_lrs, other_values) = ranks(data_parallel)
    assert lrs == other_lrs and values == other_values, "ranks hold the same bits"
    alone_lrs, alone = train(model(), batch())
    assert lrs == alone_lrs
    for a, b in zip(values, alone, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
