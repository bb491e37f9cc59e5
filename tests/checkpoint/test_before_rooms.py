"""Checkpoints written before the package had rooms load, and their runs go on with the bits that they had then.

Each file in `before_rooms/` holds a `state_dict` of one kind of schedule, written after some steps of `continued`, and
how that run went on: its learning rates after each later step, and its parameters at the end.
"""

from __future__ import annotations

import ast
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from greedylr_fused import (
    REX,
    UBA,
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    DeviceSchedule,
    FusedAdamW,
    GreedyLR,
    Linear,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Refined,
    Table,
)
from greedylr_fused.checkpoint import numbers

FOLDER = Path(__file__).parent / "before_rooms"
DRIVEN: dict[str, Any] = dict(factor=0.5, patience=1, cooldown=1, warmup=1)
NORMS = [[float(1 + k % 5), float(2 + k % 7)] for k in range(25)]
SCHEDULES: dict[str, Any] = {
    "none": None,
    "greedy": GreedyLR(**DRIVEN, window_size=4),
    "greedy_raw": GreedyLR(**DRIVEN, smooth=False, min_lr_ratio=0.25, reset_start=2),
    "greedy_on_cosine": GreedyLR(**DRIVEN, window_size=4, base=Cosine(30, warmup_steps=4)),
    "greedy_forgetting": GreedyLR(**DRIVEN, window_size=4, compare="previous", forget_every=5),
    "plateau": ReduceOnPlateau(factor=0.5, patience=1, cooldown=1),
    "constant": Constant(warmup_steps=15),
    "linear": Linear(25, warmup_steps=4),
    "polynomial": Polynomial(25, power=2.0),
    "cosine": Cosine(25, warmup_steps=4, min_lr_ratio=0.1),
    "cosine_restarts": CosineRestarts(24, num_cycles=3),
    "one_cycle": OneCycle(25),
    "rex": REX(25),
    "uba": UBA(25, phi=1.0),
    "wsd": WSD(25, warmup_steps=2, decay_steps=10),
    "wsd_open": WSD(warmup_steps=4),
    "wsd_decaying": WSD(warmup_steps=4),
    "table": Table([0.25, 0.5, 0.75, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0625]),
    "refined": Refined.from_norms(NORMS),
    "recorded_norms": Linear(25),
    "recorded_norms_only": None,
}


def saved(name: str) -> dict[str, Any]:
    return torch.load(FOLDER / f"{name}.pt", weights_only=True)


def optimizer(params: list[Tensor], name: str) -> FusedAdamW:
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 5e-4}]
    return FusedAdamW(groups, lr=1e-3, schedule=SCHEDULES[name], max_grad_norm=1.0, backend="reference")


def continued(opt: FusedAdamW, params: list[Tensor], losses: list[float], first: int) -> list[list[float]]:
    """The learning rates after each step from `first` on, with the gradients that the run had then."""
    lrs = []
    for step in range(first, len(losses)):
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        opt.step(loss=torch.tensor(losses[step], dtype=torch.float64))
        lrs.append(opt.read_lr())
    return lrs


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_goes_on_to_the_bit(name: str) -> None:
    run = saved(name)
    params = [torch.nn.Parameter(value) for value in run["params"]]
    opt = optimizer(params, name)
    dropped = pytest.warns(UserWarning, match="gradient norms .* are dropped")
    with dropped if name.startswith("recorded_norms") else contextlib.nullcontext():
        opt.load_state_dict(run["state_dict"])
    assert continued(opt, params, run["losses"], run["step"]) == run["lrs"]
    assert all(torch.equal(now, then) for now, then in zip(params, run["params_after"], strict=True))


def test_a_device_schedule_goes_on_to_the_bit() -> None:
    run = saved("device_schedule")
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, 2))], lr=torch.tensor(1e-3))
    schedule = DeviceSchedule(adamw, SCHEDULES["greedy"], backend="reference")
    schedule.load_state_dict(run["state_dict"])
    lrs = []
    for loss in run["losses"][run["step"] :]:
        schedule.step(loss=torch.tensor(loss, dtype=torch.float64))
        lrs.append(schedule.read_lr())
    assert lrs == run["lrs"]


def test_the_example_of_a_checkpoint_is_one() -> None:
    example = re.search(r'"control": (\{.*?\})', numbers.__doc__, re.S)[1]
    shown = ast.literal_eval(example.replace("inf", "2e308"))
    params = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
    written = optimizer(params, "greedy").state_dict()["param_groups"][0]["control"]
    assert list(shown) == list(written)
    assert [type(value) for value in shown.values()] == [type(value) for value in written.values()]


def test_every_file_is_loaded_by_a_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.pt")} == {*SCHEDULES, "device_schedule"}
