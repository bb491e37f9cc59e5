"""Every scheduler of torch.optim.lr_scheduler, against torch's AdamW driven by the same."""

import inspect

import pytest
import torch
from support.tensors import generator, parameter, spread
from torch.optim import lr_scheduler

from greedylr_fused import FusedAdamW

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, [lambda i: 0.9**i, lambda i: 1 / (1 + i)]),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda i: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5], gamma=0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, factor=0.25, total_iters=3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=5),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=6, power=2),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=5),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-1, step_size_up=3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.5),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 3), lr_scheduler.ExponentialLR(opt, 0.9)], milestones=[3]
    ),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, swa_lr=0.5, anneal_epochs=4),
}


def test_every_scheduler_is_here():
    exported = {
        name for name in lr_scheduler.__all__ if inspect.isclass(getattr(lr_scheduler, name)) and name != "LRScheduler"
    }
    assert exported <= set(SCHEDULERS)


def optimizers():
    built = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params = [parameter(spread(generator(n), n, -1, 0)) for n in (40, 7)]
        groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.3}]
        built.append(kind(groups, lr=0.05))
    return built


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's SequentialLR calls its own
def test_scheduler(scheduler):
    opts = optimizers()
    schedulers = [SCHEDULERS[scheduler](opt) for opt in opts]
    for step in range(9):
        for opt, driver in zip(opts, schedulers, strict=True):
            for i, group in enumerate(opt.param_groups):
                param = group["params"][0]
                param.grad = spread(generator(10 * step + i), param.numel(), -1, 0)
            opt.step()
            driver.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        ours, theirs = ([group["lr"] for group in opt.param_groups] for opt in opts)
        assert ours == theirs and opts[0].read_lr() == theirs
        for a, b in zip(*(o.param_groups for o in opts), strict=True):
            assert a["betas"] == b["betas"]  # cyclic schedulers move beta1 as well
            torch.testing.assert_close(a["params"][0], b["params"][0], rtol=1e-12, atol=1e-14)


def test_a_scheduler_that_fills_a_tensor_lr():
    lr = torch.tensor(0.5)
    param = parameter(torch.zeros(3), torch.ones(3))
    opt = FusedAdamW([param], lr=lr)
    driver = lr_scheduler.ExponentialLR(opt, 0.5)
    for _ in range(3):
        opt.step()
        driver.step()
    assert opt.read_lr() == [0.0625] and opt.param_groups[0]["lr"] is lr


def test_resume_of_optimizer_and_scheduler():
    runs = []
    for stop in (False, True):
        opt = FusedAdamW([parameter(torch.ones(5), torch.ones(5))], lr=0.1)
        driver = lr_scheduler.CosineAnnealingLR(opt, T_max=10)
        for step in range(8):
            if stop and step == 4:
                saved, state = opt.state_dict(), driver.state_dict()
                opt = FusedAdamW([parameter(opt.param_groups[0]["params"][0].detach().clone(), torch.ones(5))], lr=0.1)
                driver = lr_scheduler.CosineAnnealingLR(opt, T_max=10)
                opt.load_state_dict(saved)
                driver.load_state_dict(state)
            opt.step()
            driver.step()
        runs.append((opt.read_lr(), opt.param_groups[0]["params"][0].tolist()))
    assert runs[0] == runs[1]


def test_linear_lr_that_rounds_below_zero(backend):
    """LinearLR multiplies by what rounds: at end_factor=0 torch ends a hair below zero, and saves it."""
    runs, checkpoints = [], []
    for kind, options in ((FusedAdamW, {"backend": backend}), (torch.optim.AdamW, {})):
        param = parameter(torch.ones(4), torch.ones(4))
        opt = kind([param], lr=1e-3, **options)
        driver = lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=7)
        for _ in range(9):
            opt.step()
            driver.step()
        runs.append((param, opt, driver))
        checkpoints.append(opt.state_dict())
    assert checkpoints[0]["param_groups"][0]["lr"] == checkpoints[1]["param_groups"][0]["lr"] < 0
    assert runs[0][1].read_lr() == [0.0]
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-6, atol=0)
    for saved in checkpoints:
        param = parameter(torch.ones(4), torch.ones(4))
        opt = FusedAdamW([param], lr=1e-3, backend=backend)
        opt.load_state_dict(saved)
        opt.step()
        assert opt.read_lr() == [0.0] and param.tolist() == [1.0] * 4


def test_a_learning_rate_below_zero_stays_refused():
    opt = FusedAdamW([parameter(torch.ones(4), torch.ones(4))], lr=1e-3)
    for lr, initial in ((-1e-3, 1e-3), (-1e-14, 1e-3), (-1e-20, None)):
        opt.param_groups[0]["lr"] = lr
        if initial is not None:
            opt.param_groups[0]["initial_lr"] = initial
        else:
            opt.param_groups[0].pop("initial_lr", None)
        with pytest.raises(ValueError, match="learning rate of parameter group 0: expected .*, got -"):
            opt.step()
