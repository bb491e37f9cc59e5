"""Mistakes that a new user makes: each message says what was got, what is allowed and what to do."""

import numpy as np
import pytest
import torch
from support.tensors import parameter

from greedylr_fused import FusedAdamW, GreedyLR


@pytest.fixture
def param():
    return parameter(torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize("schedule", [None, GreedyLR(smooth=False)])
def test_a_loss_in_the_place_of_the_closure(param, schedule):
    with pytest.raises(TypeError, match=r"got a Tensor as closure.*write step\(loss=loss\)"):
        FusedAdamW([param], schedule=schedule).step(torch.tensor(1.0))


def test_numbers_in_quotes(param):
    for name in ("lr", "eps", "weight_decay"):
        with pytest.raises(TypeError, match=f"{name} of parameter group 0: got '1e-3', allowed is a number"):
            FusedAdamW([param], **{name: "1e-3"})
    for value in (None, True):
        with pytest.raises(TypeError, match="lr of parameter group 0"):
            FusedAdamW([param], lr=value)
    for value in ("1", True):
        with pytest.raises(ValueError, match="max_grad_norm: got"):
            FusedAdamW([param], max_grad_norm=value)
    opt = FusedAdamW([param], lr=np.float32(0.5), weight_decay=torch.tensor(0.0), schedule=None)
    opt.step(loss=np.float32(1.0))
    opt.param_groups[0]["lr"] = "1e-3"
    with pytest.raises(TypeError, match="learning rate of parameter group 0: got '1e-3'"):
        opt.step()
    with pytest.raises(TypeError, match="learning rate: got 'fast'"):
        opt.set_lr("fast")


def test_an_lr_that_is_none_without_a_schedule_does_not_blame_one(param):
    opt = FusedAdamW([param])
    with pytest.raises(ValueError, match="got -5.0, allowed is a finite number >= 0") as caught:
        opt.set_lr(-5)
    assert "schedule" not in str(caught.value)


def test_a_complex_loss(param):
    with pytest.raises(TypeError, match="complex64 tensor, allowed is a real number"):
        FusedAdamW([param], schedule=GreedyLR(smooth=False)).step(loss=torch.tensor(1j))


def test_a_closure_may_return_anything_without_a_schedule(param):
    opt = FusedAdamW([param])
    assert opt.step(lambda: True) is True
    assert opt.step(lambda: "done") == "done"


def test_two_schedulers(param):
    opt = FusedAdamW([param], schedule=GreedyLR(smooth=False))
    torch.optim.lr_scheduler.StepLR(opt, 10)
    with pytest.warns(UserWarning, match="lr_scheduler writes the learning rate.*use one of them"):
        opt.step(loss=1.0)
    opt.step(loss=1.0)  # said once


def test_the_checkpoint_of_another_model(param):
    other = parameter(torch.zeros(4, 4), torch.ones(4, 4))
    source = FusedAdamW([other])
    source.step()
    opt = FusedAdamW([param])
    opt.step()
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r'state\[0\]\["exp_avg"\] has shape \(4, 4\), allowed is \(3, 2\)'):
        opt.load_state_dict(source.state_dict())
    assert opt.state[param]["step"] == 1 and torch.equal(param, before)


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.RMSprop])
def test_the_checkpoint_of_another_optimizer(param, kind):
    source = kind([param])
    source.step()
    with pytest.raises(ValueError, match=r'param_groups\[0\] has no "betas".*FusedAdamW or torch.optim.AdamW wrote'):
        FusedAdamW([param]).load_state_dict(source.state_dict())


def test_the_whole_file_instead_of_the_optimizers_part(param):
    with pytest.raises(ValueError, match=r"keys \['model', 'optimizer'\].*checkpoint\[\"optimizer\"\]"):
        FusedAdamW([param]).load_state_dict({"model": {}, "optimizer": {}})


def test_a_checkpoint_whose_lr_ended_at_zero(param):
    source = torch.optim.AdamW([param], lr=0.0)
    with pytest.raises(ValueError, match="checkpoint: GreedyLR: got a starting lr of 0 in every"):
        FusedAdamW([param], schedule=GreedyLR(smooth=False)).load_state_dict(source.state_dict())
