"""Parameters and gradients that come, go and move between steps, as in torch."""

import pytest
import torch
from support.tensors import assert_same_bits, latest, parameter, stepped

from greedylr_fused import FusedAdamW

pytestmark = pytest.mark.usefixtures("watched")


@pytest.fixture
def params(device):
    return [parameter(torch.randn(n, device=device)) for n in (300, 65, 17)]


@pytest.fixture
def opt(params, backend):
    return FusedAdamW(params, lr=0.01, backend=backend)


def fill(params):
    for param in params:
        param.grad = torch.randn_like(param)


def test_missing_gradients_keep_their_own_step_count(params, opt):
    twins = [parameter(p.detach().clone()) for p in params]
    torchs = torch.optim.AdamW(twins, lr=0.01)
    for step in range(6):
        fill(params)
        for i, (param, twin) in enumerate(zip(params, twins, strict=True)):
            if (step + i) % 2 and i:
                param.grad = None
            twin.grad = None if param.grad is None else param.grad.clone()
        stepped(opt)
        torchs.step()
        for param, twin in zip(params, twins, strict=True):
            assert (param in opt.state) == (twin in torchs.state)
            if twin in torchs.state:
                assert opt.state[param]["step"] == torchs.state[twin]["step"].to(param.device)
                assert opt.state[param]["step"].shape == torchs.state[twin]["step"].shape


def test_no_gradients_at_all(params, opt):
    stepped(opt)
    assert not opt.state
    fill(params)
    stepped(opt)
    opt.zero_grad()
    stepped(opt)
    assert latest(opt).step == 3


def test_no_gradients_with_clipping(params, backend):
    opt = FusedAdamW(params, max_grad_norm=1.0, backend=backend)
    stepped(opt)
    assert latest(opt).grad_norm == 0.0 and latest(opt).skipped == 0


def test_gradients_that_appear_later(params, opt):
    for present in (1, 2, 3):
        fill(params[:present])
        stepped(opt)
    assert [float(opt.state[p]["step"]) for p in params] == [3.0, 2.0, 1.0]


def test_a_norm_is_of_the_gradients_that_are_there(params, backend):
    opt = FusedAdamW(params, max_grad_norm=1e9, backend=backend)
    for missing in (None, 0, 1, None):
        for i, param in enumerate(params):
            param.grad = None if i == missing else torch.full_like(param, 2.0)
        stepped(opt)
        count = sum(p.numel() for p in params if p.grad is not None)
        assert latest(opt).grad_norm == pytest.approx(2.0 * count**0.5, rel=1e-14)


def test_frozen_and_unfrozen(params, opt):
    for frozen in (False, True, False):
        params[1].requires_grad_(not frozen)
        opt.zero_grad()
        sum((p * p).sum() for p in params).backward()
        assert (params[1].grad is None) == frozen
        stepped(opt)
    assert [float(opt.state[p]["step"]) for p in params] == [3.0, 2.0, 3.0]


def test_gradients_in_new_memory_at_every_step(params, opt):
    keep = []  # so that no address comes back
    for _ in range(4):
        fill(params)
        keep += [p.grad for p in params]
        stepped(opt)


def test_gradients_in_the_memory_of_others(params, opt):
    """A freed address that is used again by another tensor's gradient (ABA)."""
    pool = torch.randn(600, device=params[0].device)
    for shift in (0, 1, 2, 0):
        at = 0
        for param in params[shift:] + params[:shift]:
            param.grad = pool[at : at + param.numel()]
            at += param.numel()
        stepped(opt)


def test_gradients_written_in_place(params, opt):
    fill(params)
    for scale in (1.0, -3.0, 0.0):
        for param in params:
            param.grad.mul_(scale)
        stepped(opt)


def test_swapped_data(params, opt):
    for i in range(4):
        fill(params)
        params[i % 3].data = torch.randn_like(params[i % 3])
        stepped(opt)


def test_data_of_two_parameters_exchanged(device, backend):
    a, b = (parameter(torch.randn(64, device=device)) for _ in range(2))
    opt = FusedAdamW([a, b], lr=0.01, backend=backend)
    fill((a, b))
    stepped(opt)
    a.data, b.data = b.data, a.data
    stepped(opt)


def test_replaced_state_tensors(params, opt):
    """What a user (or an offloading library) does between steps: other tensors under the same names."""
    for name in ("exp_avg", "exp_avg_sq", "step", None):
        fill(params)
        stepped(opt)
        for param in params if name else ():
            opt.state[param][name] = opt.state[param][name].clone()


def test_state_moved_away_and_back(params, opt):
    fill(params)
    stepped(opt)
    for move in (lambda t: t.double(), lambda t: t.float()):
        for param in params:
            opt.state[param] = {key: move(value) for key, value in opt.state[param].items()}
    stepped(opt)


def test_state_on_another_device_is_refused(params, opt):
    fill(params)
    opt.step()
    opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].to("meta")
    with pytest.raises(RuntimeError, match="exp_avg.*meta.*move it back"):
        opt.step()


def test_state_cleared(params, opt):
    fill(params)
    stepped(opt)
    opt.state.clear()
    stepped(opt)
    assert [float(opt.state[p]["step"]) for p in params] == [1.0] * 3


def test_add_param_group_after_steps(params, opt, device):
    fill(params)
    stepped(opt)
    late = parameter(torch.randn(100, device=device))
    opt.add_param_group({"params": [late], "lr": 0.5, "betas": (0.5, 0.7), "amsgrad": True})
    for _ in range(2):
        fill([*params, late])
        stepped(opt)
    assert float(opt.state[late]["step"]) == 2.0 and float(opt.state[params[0]]["step"]) == 3.0
    assert "max_exp_avg_sq" in opt.state[late] and "max_exp_avg_sq" not in opt.state[params[0]]


def test_parameters_removed_from_a_group(params, opt):
    fill(params)
    stepped(opt)
    kept = params[2].detach().clone()
    opt.param_groups[0]["params"] = params[:2]
    fill(params)
    stepped(opt)
    assert_same_bits(params[2], kept)


def test_parameter_replaced_in_a_group(params, opt):
    fill(params)
    stepped(opt)
    new = parameter(torch.randn_like(params[2]))
    opt.param_groups[0]["params"][2] = new
    fill([*params[:2], new])
    stepped(opt)
    assert float(opt.state[new]["step"]) == 1.0


def test_parameter_converted_in_place(params, opt):
    """`module.double()` swaps the data: a new dtype needs a new table."""
    fill(params)
    stepped(opt)
    for param in params:
        param.data = param.data.double()
        param.grad = None
        opt.state[param] = {key: v if key == "step" else v.double() for key, v in opt.state[param].items()}
    fill(params)
    stepped(opt)


def test_sparse_gradients_are_refused(device, backend):
    table = torch.nn.Embedding(10, 4, sparse=True, device=device)
    opt = FusedAdamW(table.parameters(), backend=backend)
    table(torch.tensor([1, 2], device=device)).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="sparse.*SparseAdam"):
        opt.step()
    assert_same_bits(table.weight, before)
    table.weight.grad = table.weight.grad.to_dense()
    opt.step()
