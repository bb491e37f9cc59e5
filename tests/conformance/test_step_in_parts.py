"""A step in parts, as when the sums of other ranks are waited for in between, and each rank's share of the norm."""

import pytest
import torch
from support.tensors import assert_same, snapshot

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.control.slots import SLOT

SHAPES = ((130,), (7, 33), (0,), (1,), (16_500,))  # the last is of several chunks, wherever they are shorter
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.float32)


def build(backend, device, **options):
    generator = torch.Generator().manual_seed(1)
    params = []
    for i, (shape, dtype) in enumerate(zip(SHAPES, DTYPES, strict=True)):
        params.append(torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(device)))
        if i != 3:
            params[-1].grad = torch.randn(shape, generator=generator).to(dtype).to(device)
    schedule = GreedyLR(patience=0, factor=0.5, smooth=False)
    opt = FusedAdamW(params, lr=0.1, schedule=schedule, backend=backend, amsgrad=True, **options)
    opt.step(loss=3.0)
    return opt


@pytest.mark.parametrize("options", [dict(max_grad_norm=0.5), dict(skip_nonfinite=True), {}], ids=str)
@pytest.mark.parametrize("bad", [False, True])
@torch.no_grad()
def test_parts_are_the_whole(backend, device, options, bad):
    whole, parts = (build(backend, device, **options) for _ in range(2))
    for loss in (2.0, 2.5, 2.5):
        for opt in (whole, parts):
            if bad and loss == 2.5:
                opt.param_groups[0]["params"][4].grad[-1] = torch.inf
            opt.observe(loss)
            runner, reads = opt._engine.backend, bool(options)
            if opt is whole:
                if reads:
                    runner.measure()
                runner.update()
            else:
                if reads:
                    runner.measure(then_clip=False)
                    assert opt._control.slot("skip") == 0, "not decided yet"
                    runner.clip()
                runner.update(then_control=False)
                assert opt._control.slot("loss_weight") == 1, "not committed yet"
                runner.control()
            opt._rates.pull(opt.param_groups)
        assert_same(snapshot(parts), snapshot(whole))
        if bad and options:
            parts._control.slot("skip").zero_()
            whole._control.slot("skip").zero_()
    assert whole.metrics().skipped == (2 if bad and options else 0)


def test_gradients_count_with_their_share(backend, device):
    opt = build(backend, device, max_grad_norm=0.5)
    table = opt._engine.table
    shares = torch.tensor([1.0, 0.25, 1 / 3, 0.5, 0.75][: len(table.entries)], dtype=torch.float64)
    table.norm_weight.copy_(shares)
    opt._engine.backend.measure(then_clip=False)
    squares = [0.0 if e.param.grad is None else float(e.param.grad.double().square().sum()) for e in table.entries]
    want = sum(share * square for share, square in zip(shares.tolist(), squares, strict=True))
    got = float(opt._control.vector[SLOT["grad_sq_sum"]])
    assert got == pytest.approx(want, rel=1e-13)  # sums of 2e4 terms in float64, in another order
