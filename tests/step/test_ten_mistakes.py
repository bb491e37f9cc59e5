"""The ten mistakes of new users, each with a message that names the fix; docs/faq.md tells of the same ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.tensors import assert_same, parameter, snapshot
from transformers import optimization

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.step import losses

RESTLESS = GreedyLR(patience=0, factor=0.5, smooth=False)


def model():
    torch.manual_seed(1)
    return torch.nn.Linear(4, 2)


def backward(net):
    loss = net(torch.ones(3, 4)).square().mean()
    loss.backward()
    return loss


def test_1_forgot_the_loss():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    backward(net)
    with pytest.raises(
        RuntimeError, match=r"got no loss.*three ways: step\(loss=loss\).*step\(closure\).*observe\(loss\)"
    ):
        opt.step()


def test_2_passed_loss_item(recwarn):
    with pytest.warns(UserWarning, match=r"got a number as loss for parameters on cuda.*pass the tensor itself"):
        losses.warn_of_number(0.5, torch.device("cuda"))
    losses.warn_of_number(torch.tensor(0.5), torch.device("cuda"))
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.step(loss=backward(net).item())  # on a CPU nothing was waited for
    assert not recwarn.list


def test_3_two_schedulers():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    with pytest.warns(UserWarning, match="GreedyLR also decides it.*drop the scheduler.*or pass schedule=None"):
        opt.step(loss=backward(net))
    scheduler.step()


def test_5_greedylr_stepped_at_evaluation_only():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.observe(1.0)  # of an evaluation
    backward(net)
    opt.step()
    with pytest.raises(
        RuntimeError, match="needs the loss of its own batch; to decide from losses of evaluations alone"
    ):
        opt.step()
    other = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-3))  # what the message says to write
    schedule = DeviceSchedule(other, GreedyLR(patience=0, smooth=False))
    for evaluation in (1.0, 2.0):
        other.step()
        other.step()
        schedule.step(evaluation)
    assert schedule.metrics().step == 2


def test_5_transformers_schedule_in_the_place_of_ours():
    scheduler = optimization.GreedyLR(torch.optim.SGD(model().parameters(), lr=0.1), min_lr=1e-6)
    with pytest.raises(
        TypeError, match="transformers.optimization.GreedyLR, which steps on the host.*from greedylr_fused"
    ):
        FusedAdamW(model().parameters(), schedule=scheduler)


def test_6_parameters_on_two_devices():
    params = [parameter(torch.ones(2), torch.ones(2)), parameter(torch.ones(2, device="meta"))]
    opt = FusedAdamW(params)
    with pytest.raises(RuntimeError, match="parameters on cpu, meta, allowed is one device.*one FusedAdamW for"):
        opt.step()


def test_7_frozen_parameters():
    net = model()
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    opt.step(loss=1.0)  # that a step finds no gradient is usual on one of several ranks
    net.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"no parameter has a gradient.*all 2 are frozen \(requires_grad=False\); pass"
    ):
        opt.step(loss=1.0)


def test_7_some_frozen_parameters_are_usual():
    net = model()
    net.bias.requires_grad_(False)
    opt = FusedAdamW(net.parameters(), schedule=GreedyLR())
    bias = net.bias.clone()
    opt.step(loss=backward(net))
    assert torch.equal(net.bias, bias) and net.bias not in opt.state


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_8_wrong_backend(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=f'backend="{name}" cannot run on cpu: .*Usable there: cpu.*backend="auto"'):
        FusedAdamW(model().parameters(), backend=name)
    with pytest.raises(ValueError, match="got 'gpu', allowed are auto, cpu, cuda, triton, reference; leave it out"):
        FusedAdamW(model().parameters(), backend="gpu")


def test_9_old_checkpoint():
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


def test_10_lr_out_of_bounds():
    net = model()
    with pytest.raises(ValueError, match="min_lr"):
        FusedAdamW(net.parameters(), lr=1e-4, schedule=GreedyLR(min_lr=1e-3))
    opt = FusedAdamW(net.parameters(), lr=1e-3, schedule=GreedyLR())
    with pytest.raises(ValueError, match=r"got 1.0, allowed is 0.0001 to 0.01 \(the schedule's min_lr and max_lr\)"):
        opt.set_lr(1.0)
    opt.param_groups[0]["lr"] = 1.0
    with pytest.raises(ValueError, match="learning rate of parameter group 0: got 1.0, allowed is"):
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
