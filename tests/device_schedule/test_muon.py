"""The Muon of this package beside torch's: the same bits, without a read of the LR by the host."""

import pytest
import torch
from support.host_reads import NoHostRead, no_host_read
from support.tensors import generator

from greedylr_fused import DeviceSchedule, Muon
from greedylr_fused.schedules import Cosine

SHAPES = ((24, 16), (7, 13), (33, 3), (1, 5))


def trained(kind, lr, dtype=torch.float32, steps=5, **options):
    """The parameters after some steps, and the optimizer; every parameter but the last has a gradient each time."""
    random = generator(4)
    params = [torch.nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for shape in SHAPES]
    opt = kind(params, lr=lr, **options)
    for step in range(steps):
        for param in params[: None if step % 2 else -1]:
            param.grad = torch.randn(param.shape, generator=random).to(dtype)
        opt.step()
        opt.zero_grad()
    return params, opt


@pytest.mark.parametrize(
    "lr", [0.02, torch.tensor(0.02), torch.tensor([0.02]), torch.tensor(0.02, dtype=torch.float64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"adjust_lr_fn": "match_rms_adamw", "nesterov": False}, {"weight_decay": 0.0, "momentum": 0.8, "ns_steps": 3}],
)
def test_the_bits_are_those_of_torch(lr, dtype, options):
    (ours, opt), (theirs, torchs) = (trained(kind, lr, dtype, **options) for kind in (Muon, torch.optim.Muon))
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)
        buffers = (state[param]["momentum_buffer"] for state, param in ((opt.state, own), (torchs.state, other)))
        assert torch.equal(*buffers)


def test_16_bit_parameters_take_the_lr_unrounded():
    """torch's CPU kernel rounds the LR to the parameter's dtype first, and then misses some elements by an ulp."""
    lr = torch.tensor(0.0213)
    start, grad = (torch.randn(16, 24, generator=generator(seed)).bfloat16() for seed in (1, 2))
    before = {kind: torch.nn.Parameter(start.clone()) for kind in (Muon, torch.optim.Muon)}
    zero = torch.nn.Parameter(torch.zeros(16, 24, dtype=torch.float64))  # holds the negative update after a step
    for kind, param in before.items():
        param.grad = grad.clone()
        kind([param], lr=lr, weight_decay=0.0, momentum=0.0).step()
    zero.grad = grad.double()
    Muon([zero], lr=1.0, weight_decay=0.0, momentum=0.0).step()
    expected = (start.double() + lr.double() * zero.detach()).float().bfloat16()
    assert torch.equal(before[Muon].detach(), expected)
    torch.testing.assert_close(before[torch.optim.Muon].detach(), expected, rtol=2**-6, atol=0.0213 * 2**-7)


def test_the_lr_is_never_read_by_the_host(monkeypatch):
    params, opt = trained(Muon, torch.tensor(0.02), steps=2)
    schedule = DeviceSchedule(opt, Cosine(10))
    before = [param.detach().clone() for param in params]
    with no_host_read(monkeypatch, [opt.param_groups[0]["lr"], schedule._control.vector]):
        for _ in range(3):
            for param in params:
                param.grad = torch.ones_like(param)
            opt.step()
            schedule.step()
    assert not any(map(torch.equal, before, params))
    _, torchs = trained(torch.optim.Muon, torch.tensor(0.02), steps=2)
    torchs.param_groups[0]["params"][0].grad = torch.ones(SHAPES[0])
    with NoHostRead(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torchs.step()  # which is what ours is for


def test_torchs_is_told_of_at_construction():
    _, torchs = trained(torch.optim.Muon, torch.tensor(0.02), steps=0)
    with pytest.warns(UserWarning, match=r"got torch.optim.Muon, which waits .* write greedylr_fused.Muon\(...\)"):
        DeviceSchedule(torchs, Cosine(10))
    _, ours = trained(Muon, torch.tensor(0.02), steps=0)
    DeviceSchedule(ours, Cosine(10))  # warnings are errors


def test_a_closure_is_called_once_with_gradients_and_hooks_too():
    (param, *_), opt = trained(Muon, torch.tensor(0.02), steps=0)
    trained(torch.optim.Muon, 0.02, steps=1)  # whose class calls hooks of its own from then on
    told = []
    opt.register_step_post_hook(lambda *_: told.append("hook"))

    def closure():
        told.append("closure")
        loss = (param * param).sum()
        loss.backward()
        return loss

    assert opt.step(closure).requires_grad and told == ["closure", "hook"]


def test_checkpoints_are_torchs():
    ours, opt = trained(Muon, torch.tensor(0.02))
    _, torchs = trained(torch.optim.Muon, torch.tensor(0.02), steps=0)
    torchs.load_state_dict(opt.state_dict())
    for own, other in zip(ours, torchs.param_groups[0]["params"], strict=True):
        assert torch.equal(torchs.state[other]["momentum_buffer"], opt.state[own]["momentum_buffer"])
