"""Mistakes that a new user makes: each message says what is expected, what was got and what to do.

docs/faq.md tells of those that come first.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.tensors import assert_same, parameter, snapshot
from transformers import optimization

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.step import losses

RESTLESS = GreedyLR(patience=0, factor=0.5, smooth=False)


@pytest.fixture
def param():
    return parameter(torch.zeros(3, 2), torch.ones(3, 2))


def model():
    torch.manual_seed(1)
    return torch.nn.Linear(4, 2)


def backward(net):
    loss = net(torch.ones(3, 4)).square().mean()
    loss.backward()
    return loss


def test_forgot_the_loss():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    backward(net)
    with pytest.raises(
        RuntimeError,
        match=r"expected a loss, .*got none; .*three ways: step\(loss=loss\).*step\(closure\).*observe\(loss\)",
    ):
        opt.step()


def test_passed_loss_item(recwarn):
    with pytest.warns(
        UserWarning, match=r"expected a tensor as loss for parameters on cuda, got a number.*pass the tensor itself"
    ):
        losses.warn_of_number(0.5, torch.device("cuda"))
    losses.warn_of_number(torch.tensor(0.5), torch.device("cuda"))
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.step(loss=backward(net).item())  # on a CPU nothing was waited for
    assert not recwarn.list


def test_two_schedulers(param):
    opt = FusedAdamW([param], schedule=GreedyLR())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    said = "lr_scheduler writes the learning rate.*GreedyLR also decides it.*use one of them: drop the scheduler"
    with pytest.warns(UserWarning, match=f"{said}.*or pass schedule=None"):
        opt.step(loss=1.0)
    scheduler.step()
    opt.step(loss=1.0)  # said once


def test_greedylr_stepped_at_evaluation_only():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.observe(1.0)  # of an evaluation
    backward(net)
    opt.step()
    with pytest.raises(RuntimeError, match="losses of evaluations alone, see docs/faq.md"):
        opt.step()
    other = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-3))  # what the message says to write
    schedule = DeviceSchedule(other, GreedyLR(patience=0, smooth=False))
    for evaluation in (1.0, 2.0):
        other.step()
        other.step()
        schedule.step(loss=evaluation)
    assert schedule.metrics().step == 2


def test_transformers_schedule_in_the_place_of_ours():
    scheduler = optimization.GreedyLR(torch.optim.SGD(model().parameters(), lr=0.1), min_lr=1e-6)
    with pytest.raises(
        TypeError, match="transformers.optimization.GreedyLR, which steps on the host.*from greedylr_fused"
    ):
        FusedAdamW(model().parameters(), schedule=scheduler)


def test_parameters_on_two_devices():
    params = [parameter(torch.ones(2), torch.ones(2)), parameter(torch.ones(2, device="meta"))]
    opt = FusedAdamW(params)
    with pytest.raises(
        RuntimeError, match="expected parameters on one device, got ones on cpu, meta; construct one FusedAdamW for"
    ):
        opt.step()


def test_frozen_parameters():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.step(loss=1.0)  # that a step finds no gradient is usual on one of several ranks
    net.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"no parameter has a gradient.*all 2 are frozen \(requires_grad=False\); pass"
    ):
        opt.step(loss=1.0)


def test_some_frozen_parameters_are_usual():
    net = model()
    net.bias.requires_grad_(False)
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    bias = net.bias.clone()
    opt.step(loss=backward(net))
    assert torch.equal(net.bias, bias) and net.bias not in opt.state


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_wrong_backend(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=f'backend="{name}" cannot run on cpu: .*Usable there: cpu.*backend="auto"'):
        FusedAdamW(model().parameters(), backend=name)
    with pytest.raises(ValueError, match="expected one of auto, cpu, cuda, triton, reference, got 'gpu'; leave it out"):
        FusedAdamW(model().parameters(), backend="gpu")


def test_old_checkpoint():
    """One that lacks what is kept now is refused by the name of the key, and changes nothing."""
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=RESTLESS)
    opt.step(loss=backward(net))
    saved = opt.state_dict()
    del saved["param_groups"][0]["control"]["best"]
    before = snapshot(opt)
    with pytest.raises(ValueError, match='checkpoint: .*"best"'):
        opt.load_state_dict(saved)
    assert_same(snapshot(opt), before)


def test_lr_out_of_bounds():
    net = model()
    with pytest.raises(ValueError, match="min_lr"):
        FusedAdamW(net.parameters(), lr=1e-4, schedule=GreedyLR(min_lr=1e-3))
    opt = FusedAdamW(net.parameters(), lr=1e-3, schedule=GreedyLR())
    with pytest.raises(ValueError, match=r"expected 0.0001 to 0.01 \(the schedule's min_lr and max_lr\), got 1.0"):
        opt.set_lr(1.0)
    opt.param_groups[0]["lr"] = 1.0
    with pytest.raises(ValueError, match="learning rate of parameter group 0: expected .*, got 1.0"):
        opt.step(loss=backward(net))


def test_under_lightning_s_accumulation_without_its_callback():
    """What Lightning hands to step() is a partial function of its module; its loss is a part of one."""

    class Closure:
        args = (SimpleNamespace(_trainer=SimpleNamespace(accumulate_grad_batches=3)),)

        def __call__(self):
            return torch.tensor(1.0)

    opt = FusedAdamW(model().parameters(), schedule=GreedyLR())
    with pytest.raises(RuntimeError, match=r"last of 3 micro-batches.*callbacks=\[ObserveLoss\(\)\]"):
        opt.step(Closure())
    FusedAdamW(model().parameters()).step(Closure())  # nothing is decided from it


@pytest.mark.parametrize("schedule", [None, GreedyLR(smooth=False)])
def test_a_loss_in_the_place_of_the_closure(param, schedule):
    with pytest.raises(TypeError, match=r"expected as closure a function .*got a Tensor; write step\(loss=loss\)"):
        FusedAdamW([param], schedule=schedule).step(torch.tensor(1.0))


def test_numbers_in_quotes(param):
    for name in ("lr", "eps", "weight_decay"):
        with pytest.raises(TypeError, match=f"{name} of parameter group 0: expected a number, got '1e-3'"):
            FusedAdamW([param], **{name: "1e-3"})
    for value in (None, True):
        with pytest.raises(TypeError, match="lr of parameter group 0"):
            FusedAdamW([param], lr=value)
    for value in ("1", True):
        with pytest.raises(ValueError, match="max_grad_norm: expected .*, got"):
            FusedAdamW([param], max_grad_norm=value)
    opt = FusedAdamW([param], lr=np.float32(0.5), weight_decay=torch.tensor(0.0), schedule=None)
    opt.step(loss=np.float32(1.0))
    opt.param_groups[0]["lr"] = "1e-3"
    with pytest.raises(TypeError, match="learning rate of parameter group 0: expected .*, got '1e-3'"):
        opt.step()
    with pytest.raises(TypeError, match="learning rate: expected .*, got 'fast'"):
        opt.set_lr("fast")


def test_an_lr_that_is_none_without_a_schedule_does_not_blame_one(param):
    opt = FusedAdamW([param])
    with pytest.raises(ValueError, match="expected a finite number >= 0, got -5.0") as caught:
        opt.set_lr(-5)
    assert "schedule" not in str(caught.value)


def test_a_complex_loss(param):
    with pytest.raises(TypeError, match="expected a real number, got a torch.complex64 tensor"):
        FusedAdamW([param], schedule=GreedyLR(smooth=False)).step(loss=torch.tensor(1j))


def test_a_closure_may_return_anything_without_a_schedule(param):
    opt = FusedAdamW([param])
    assert opt.step(lambda: True) is True
    assert opt.step(lambda: "done") == "done"


def test_the_checkpoint_of_another_model(param):
    other = parameter(torch.zeros(4, 4), torch.ones(4, 4))
    source = FusedAdamW([other])
    source.step()
    opt = FusedAdamW([param])
    opt.step()
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r'state\[0\]\["exp_avg"\]: expected shape \(3, 2\) .*got \(4, 4\)'):
        opt.load_state_dict(source.state_dict())
    assert opt.state[param]["step"] == 1 and torch.equal(param, before)


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.RMSprop])
def test_the_checkpoint_of_another_optimizer(param, kind):
    source = kind([param])
    source.step()
    with pytest.raises(
        ValueError, match=r'param_groups\[0\]: expected .*without "betas".*FusedAdamW or torch.optim.AdamW wrote'
    ):
        FusedAdamW([param]).load_state_dict(source.state_dict())


def test_the_whole_file_instead_of_the_optimizers_part(param):
    with pytest.raises(ValueError, match=r"keys \['model', 'optimizer'\].*checkpoint\[\"optimizer\"\]"):
        FusedAdamW([param]).load_state_dict({"model": {}, "optimizer": {}})


def test_a_checkpoint_whose_lr_ended_at_zero(param):
    source = torch.optim.AdamW([param], lr=0.0)
    with pytest.raises(ValueError, match="checkpoint: GreedyLR: expected a starting lr above 0 .*, got 0 in every"):
        FusedAdamW([param], schedule=GreedyLR(smooth=False)).load_state_dict(source.state_dict())
