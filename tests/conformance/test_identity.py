"""A table holds addresses: whatever moves, resizes or replaces the memory behind them must be noticed."""

import gc
import math
import weakref

import pytest
import torch
from support.tensors import assert_same_bits, latest, parameter, stepped

from greedylr_fused import FusedAdamW, GreedyLR

pytestmark = pytest.mark.usefixtures("watched")


@pytest.fixture
def pair(device, backend):
    """Two optimizers over equal parameters: this one and torch's; each with one step behind it."""
    params = [parameter(torch.randn(8, 8, device=device)) for _ in range(2)]
    twins = [parameter(p.detach().clone()) for p in params]
    ours, torchs = FusedAdamW(params, lr=0.01, backend=backend), torch.optim.AdamW(twins, lr=0.01)
    both_step(params, ours, twins, torchs)
    return params, ours, twins, torchs


def both_step(params, ours, twins, torchs):
    for param, twin in zip(params, twins, strict=True):
        param.grad = torch.randn_like(param)
        twin.grad = param.grad.clone()
    stepped(ours)
    torchs.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.allclose(param, twin, rtol=1e-5, atol=1e-6)
        assert ours.state[param]["step"] == torchs.state[twin]["step"].to(param.device)


def test_step_counts_that_are_moved_by_hand(pair):
    params, ours, twins, torchs = pair
    for param in params:
        for value in ours.state[param].values():
            value.data = value.data.clone()
    both_step(params, ours, twins, torchs)
    both_step(params, ours, twins, torchs)


def test_step_counts_whose_memory_is_replaced(pair):
    params, ours, twins, torchs = pair
    if params[0].is_cuda:
        pytest.skip("memory of a device is not moved to shared host memory")
    ours.state[params[0]]["step"].share_memory_()  # moves the storage under all views of it
    both_step(params, ours, twins, torchs)


def test_a_parameter_that_is_transposed_in_place(pair):
    params, ours, twins, torchs = pair
    for param in (params[0], twins[0]):
        param.data = param.data.t()
    both_step(params, ours, twins, torchs)


def test_a_parameter_that_shrinks_at_the_same_address(pair):
    params, ours, _, _ = pair
    before = params[1].detach().clone()
    params[0].grad = None
    params[0].data = params[0].data[:4]
    params[0].grad = torch.randn(4, 8, device=params[0].device)
    with pytest.raises(RuntimeError, match=r"'exp_avg': expected shape \(4, 8\) .*, got \(8, 8\)"):
        ours.step()
    assert_same_bits(params[1], before)


def test_a_gradient_older_than_its_parameters_shape(device, backend):
    param = parameter(torch.randn(8, device=device), torch.randn(8, device=device))
    opt = FusedAdamW([param], backend=backend)
    param.data = param.data[:4]
    with pytest.raises(
        RuntimeError, match=r"expected a gradient of shape \(4,\) like its parameter, got one of shape \(8,\)"
    ):
        opt.step()


def test_a_gradient_without_memory(pair):
    params, ours, _, _ = pair
    params[0].grad.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="whose memory is gone.*run backward"):
        ours.step()


def test_a_zero_tensor_as_gradient(pair):
    params, ours, twins, torchs = pair
    for param in (params[0], twins[0]):
        param.grad = torch._efficientzerotensor((8, 8), device=param.device)
    stepped(ours)
    torchs.step()
    assert torch.allclose(params[0], twins[0], rtol=1e-5, atol=1e-6)


def test_a_parameter_with_a_sign_yet_to_be_applied(device, backend):
    base = torch.randn(6, device=device)
    params = [parameter(torch._neg_view(base.clone()), torch.ones(6, device=device)) for _ in range(2)]
    FusedAdamW(params[:1], lr=0.1, backend=backend).step()
    torch.optim.AdamW(params[1:], lr=0.1).step()
    assert torch.allclose(params[0], params[1], rtol=1e-5)


def test_an_error_in_refresh_leaves_nothing_stale(device, backend):
    dense, sparse = (parameter(torch.zeros(3, 2, device=device)) for _ in range(2))
    opt = FusedAdamW([dense, sparse], lr=0.1, weight_decay=0.0, backend=backend)
    dense.grad, sparse.grad = torch.zeros(3, 2, device=device), torch.zeros(3, 2, device=device)
    opt.step()
    dense.grad = torch.full((2, 3), -5.0, device=device).t()
    sparse.grad = torch.ones(3, 2, device=device).to_sparse()
    with pytest.raises(RuntimeError, match="layout torch.sparse_coo"):
        opt.step()
    dense.grad, sparse.grad = torch.ones(3, 2, device=device), torch.ones(3, 2, device=device)
    stepped(opt)
    assert torch.allclose(opt.state[dense]["exp_avg"], torch.full((3, 2), 0.1, device=device))


def test_an_upload_that_fails_is_made_up_for(pair, monkeypatch):
    params, ours, twins, torchs = pair

    def fail(*_, **__):
        raise KeyboardInterrupt

    for param in params:
        param.grad = torch.randn_like(param)  # kept alive, so that the next ones lie elsewhere
    kept = [param.grad for param in params]
    for opt in (ours, torchs):
        opt.param_groups[0]["weight_decay"] = 0.5
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "tensor", fail)  # the hyper-parameters, everywhere
        patch.setattr(type(ours._engine.backend), "send", fail)  # and addresses, where they have a way to go
        ours.step()
    both_step(params, ours, twins, torchs)
    assert kept


def test_what_was_replaced_is_freed(pair):
    params, ours, _, _ = pair
    old = weakref.ref(ours.state[params[0]]["exp_avg"])
    ours.state[params[0]]["exp_avg"] = ours.state[params[0]]["exp_avg"].clone()
    gc.collect()
    assert old() is None
    old = weakref.ref(ours.state[params[0]]["exp_avg"])
    ours.load_state_dict(ours.state_dict() | {"state": {}})
    gc.collect()
    assert old() is None


def test_a_step_that_fails_uses_up_its_loss(device, backend, monkeypatch):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    opt = FusedAdamW([param], schedule=GreedyLR(patience=0, smooth=False), backend=backend)
    opt.step(loss=1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(opt._engine.backend), "update", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        opt.step(loss=100.0)
    opt.step(loss=2.0)
    assert latest(opt).loss == 2.0


def test_a_micro_batch_of_no_weight_counts_for_nothing(device, backend):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    opt = FusedAdamW([param], schedule=GreedyLR(smooth=False), backend=backend)
    for weight in (0, torch.zeros((), device=device)):
        opt.observe(math.nan, weight)
    opt.observe(torch.tensor(3.0, device=device), 2)
    stepped(opt)
    assert latest(opt).loss == 3.0


def test_a_tensor_lr_is_clamped_to_the_bounds(device, backend):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    opt = FusedAdamW([param], lr=0.1, schedule=GreedyLR(min_lr=0.01, max_lr=1.0, smooth=False), backend=backend)
    opt.param_groups[0]["lr"] = torch.tensor(50.0, requires_grad=True)
    assert opt.read_lr() == [1.0] and not opt._control.vector.requires_grad
    opt.load_state_dict(opt.state_dict())
    assert opt.read_lr() == [1.0]


def test_options_are_fixed_at_construction(device, backend):
    opt = FusedAdamW([parameter(torch.zeros(3, device=device))], max_grad_norm=1.0, backend=backend)
    for name in ("max_grad_norm", "skip_nonfinite", "skip_spikes", "schedule"):
        with pytest.raises(AttributeError):
            setattr(opt, name, None)


def test_a_default_device_does_not_catch_the_tables(device, backend):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    with torch.device("meta"):
        opt = FusedAdamW([param], lr=0.1, weight_decay=0.0, schedule=GreedyLR(smooth=False), backend=backend)
        opt.step(loss=1.0)
    assert torch.allclose(param.detach().cpu(), torch.full((3,), -0.1))


def test_parameters_without_memory_yet(backend):
    """Built on the meta device to be given memory later, as large models are."""
    param = torch.nn.Parameter(torch.zeros(3, device="meta"))
    opt = FusedAdamW([param], schedule=GreedyLR(smooth=False), backend=backend if backend != "triton" else "auto")
    param.grad = torch.zeros(3, device="meta")
    with pytest.raises(TypeError, match="Parameter on meta without memory.*materialise it"):
        opt.step(loss=1.0)


def test_moments_that_are_transposed_in_place(pair):
    params, ours, twins, torchs = pair
    for optimizer, param in ((ours, params[0]), (torchs, twins[0])):
        optimizer.state[param]["exp_avg"].t_()
        optimizer.state[param]["exp_avg_sq"].t_()
    both_step(params, ours, twins, torchs)


def test_a_parameter_that_is_negated_at_the_same_address(device, backend):
    """Of one element: views of more that PyTorch negates are never dense, since they skip the real parts."""
    numbers = [torch.tensor([1 + 2j], device=device) for _ in range(2)]
    params = [parameter(number.imag) for number in numbers]
    ours, torchs = FusedAdamW(params[:1], lr=0.1, backend=backend), torch.optim.AdamW(params[1:], lr=0.1)
    for number, param, opt in zip(numbers, params, (ours, torchs), strict=True):
        param.grad = torch.ones(1, device=device)
        opt.step()
        address = param.data_ptr()
        param.data = number.conj().imag
        assert param.is_neg() and param.data_ptr() == address
        opt.step()
    assert torch.allclose(params[0], params[1], rtol=1e-5)


def test_parameters_with_holes_are_left_alone_without_a_gradient(device, backend):
    param = parameter(torch.ones(4, 4, device=device)[:, :2], torch.ones(4, 2, device=device))
    opt = FusedAdamW([param], backend=backend)
    stepped(opt)
    param.grad = None
    loss = (param * param).sum()
    stepped(opt)
    loss.backward()  # autograd would object to a parameter that was written to


def test_a_step_that_fails_early_uses_up_its_loss(device, backend):
    param = parameter(torch.zeros(3, device=device))
    opt = FusedAdamW([param], schedule=GreedyLR(smooth=False), backend=backend)
    param.grad = torch.ones(3, device=device).to_sparse()
    opt.observe(100.0)
    with pytest.raises(RuntimeError, match="layout"):
        opt.step()
    param.grad = torch.ones(3, device=device)
    opt.step(loss=2.0)
    assert latest(opt).loss == 2.0


def test_a_step_interrupted_where_it_follows_new_groups(device, backend, monkeypatch):
    opt = FusedAdamW([parameter(torch.zeros(3, device=device), torch.ones(3, device=device))], backend=backend)
    opt.add_param_group({"params": [parameter(torch.zeros(2, device=device))]})

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("greedylr_fused.step.rates.Mirror", fail)
        opt.step()
    stepped(opt)
    assert latest(opt).step == 1 and len(latest(opt).lr) == 2
