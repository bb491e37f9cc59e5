"""Mistakes that a new user makes, and the words of the answer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import optimization

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.schedules import Linear
from greedylr_fused.step import losses

from .tensors import parameter

GREEDY = GreedyLR(patience=0, factor=0.5, smooth=False)
#: What Lightning hands to step() is a partial function of its module; its loss is a part of one.
CLOSURE = partial(lambda _: torch.tensor(1.0), SimpleNamespace(_trainer=SimpleNamespace(accumulate_grad_batches=3)))


class Mistake(NamedTuple):
    """`make` is given what `prepare` returns, the optimizer if there is one; `words` are a pattern in the answer."""

    make: Callable[[Any], object]
    answer: type[Exception]
    words: str = ""
    prepare: Callable[[], Any] = lambda: None


def optimizer(kind=FusedAdamW, shape=(3, 2), **options):
    return kind([parameter(torch.zeros(shape), torch.ones(shape))], **options)


def constructing(error, words, **options):
    return Mistake(lambda _: optimizer(**options), error, words)


def stepping(answer, words, *args, prepare=None, schedule=None, **given):
    made = prepare or partial(optimizer, schedule=schedule)
    return Mistake(lambda opt: opt.step(*args, **given), answer, words, made)


def loading(answer, words, saved, **options):
    return Mistake(lambda opt: opt.load_state_dict(saved()), answer, words, partial(stepped, **options))


def stepped(*args, steps=1, **options):
    opt = optimizer(*args, **options)
    for _ in range(steps):
        opt.step(lambda: 1.0)
    return opt


def saved(*args, **options):
    return stepped(*args, **options).state_dict()


def without_best():
    found = saved(schedule=GREEDY)
    del found["param_groups"][0]["control"]["best"]
    return found


def observed():
    opt = optimizer(schedule=GREEDY)
    opt.observe(1.0)
    return opt


def written(lr, **options):
    opt = optimizer(**options)
    opt.param_groups[0]["lr"] = lr
    return opt


def two_schedulers():
    opt = optimizer(schedule=GREEDY)
    opt.scheduler = CosineAnnealingLR(opt, 10)
    return opt


def frozen():
    opt = optimizer(schedule=GREEDY)
    opt.zero_grad()
    opt.step(loss=1.0)  # that a step finds no gradient is usual on one of several ranks
    opt.param_groups[0]["params"][0].requires_grad_(False)
    return opt


def step_on_two_devices(_):
    FusedAdamW([parameter(torch.ones(2), torch.ones(2)), parameter(torch.ones(2, device="meta"))]).step()


def start_beside_the_clone(_):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "greedylr_fused").mkdir()
        code = "import sys; sys.path.insert(0, '.'); from greedylr_fused import FusedAdamW"
        ended = subprocess.run([sys.executable, "-ISc", code], cwd=folder, capture_output=True, text=True)
    raise ImportError(ended.stderr)


#: By the heading of docs/faq.md. What it quotes is in the answer too, where "..." stands for anything.
OF_FAQ = {
    '"FusedAdamW.step(): expected a loss, from which its schedule GreedyLR decides, got none"': stepping(
        RuntimeError,
        r"three ways: step\(loss=loss\).*step\(closure\).*observe\(loss\).*of evaluations alone, see docs/faq.md",
        schedule=GREEDY,
    ),
    '"FusedAdamW.step(): expected the loss once, got it more than once"': stepping(
        ValueError, r"drop all but one .*, or call discard_observed\(\)", prepare=observed, loss=1.0
    ),
    "I passed loss.item()": Mistake(
        lambda _: losses.warn_of_number(0.5, torch.device("cuda")), UserWarning, "got a number.*pass the tensor itself"
    ),
    '"a torch.optim.lr_scheduler writes the learning rate of a FusedAdamW whose GreedyLR also decides it"': stepping(
        UserWarning, "drop the scheduler.*or pass schedule=None", prepare=two_schedulers, loss=1.0
    ),
    '"FusedAdamW: expected parameters on one device, got ones on cpu, ..."': Mistake(
        step_on_two_devices, RuntimeError, "meta; construct one FusedAdamW for"
    ),
    '"DeviceSchedule: expected an optimizer whose step reads the LR on the device, got torch.optim.Muon, ..."': Mistake(
        lambda _: DeviceSchedule(optimizer(torch.optim.Muon, lr=torch.tensor(0.02)), Linear(9)),
        UserWarning,
        r"write greedylr_fused.Muon\(...\)",
    ),
    '"FusedAdamW.step(): no parameter has a gradient, ..."': stepping(
        UserWarning, r"all 1 are frozen \(requires_grad=False\); pass", prepare=frozen, loss=1.0
    ),
    """'backend="cuda" cannot run on cpu' and others""": constructing(
        RuntimeError, 'Usable there: cpu.*backend="auto"', backend="cuda"
    ),
    "A checkpoint is refused": loading(
        ValueError,
        r"keys \['model', 'optimizer'\].*checkpoint\[\"optimizer\"\]",
        lambda: {"model": {}, "optimizer": {}},
    ),
    '"learning rate of parameter group 0: expected 0.0001 to 0.01 ..., got 1.0"': Mistake(
        lambda opt: opt.set_lr(1.0), ValueError, "the schedule's min_lr and max_lr", partial(optimizer, schedule=GREEDY)
    ),
    '"its LR is 0 from step 99 on, and the checkpoint is of step 100"': loading(
        UserWarning, "a larger total_steps", lambda: saved(steps=100, schedule=Linear(99)), schedule=Linear(99)
    ),
    '"Attempted to call function marked as skipped" ... `FusedAdamW.step`': Mistake(
        lambda opt: torch.compile(lambda: opt.step(), backend="eager", fullgraph=True)(),
        RuntimeError,
        r"FusedAdamW\.step",
        optimizer,
    ),
    "\"cannot import name 'FusedAdamW' from 'greedylr_fused' (unknown location)\"": Mistake(
        start_beside_the_clone, ImportError
    ),
}

NUMBER = "{} of parameter group 0: expected a number, got {!r}"
OF_ADAMW = r'param_groups\[0\]: expected .*without "betas".*FusedAdamW or torch.optim.AdamW wrote'
OTHERS = [
    constructing(RuntimeError, 'backend="triton" cannot run on cpu: .*backend="auto"', backend="triton"),
    constructing(ValueError, "of auto, cpu, cuda, triton, reference, got 'gpu'; leave it out", backend="gpu"),
    constructing(ValueError, "min_lr", lr=1e-4, schedule=GreedyLR(min_lr=1e-3)),
    Mistake(
        lambda _: optimizer(schedule=optimization.GreedyLR(optimizer(torch.optim.SGD), min_lr=1e-6)),
        TypeError,
        "transformers.optimization.GreedyLR, which steps on the host.*from greedylr_fused",
    ),
    *(constructing(TypeError, NUMBER.format(name, "1e-3"), **{name: "1e-3"}) for name in ("lr", "eps", "weight_decay")),
    *(constructing(TypeError, NUMBER.format("lr", value), lr=value) for value in (None, True)),
    *(constructing(ValueError, "max_grad_norm: expected .*, got", max_grad_norm=value) for value in ("1", True)),
    stepping(ValueError, "group 0: expected .*, got 1.0", prepare=partial(written, 1.0, schedule=GREEDY), loss=1.0),
    stepping(TypeError, "learning rate of parameter group 0: .*, got '1e-3'", prepare=partial(written, "1e-3")),
    Mistake(lambda opt: opt.set_lr("fast"), TypeError, "learning rate: expected .*, got 'fast'", optimizer),
    # Without a schedule none is blamed.
    Mistake(lambda opt: opt.set_lr(-5), ValueError, "a finite number >= 0, got -5.0(?!.*schedule)", optimizer),
    stepping(TypeError, r"closure a function .*got a Tensor; write step\(loss=loss\)", torch.tensor(1.0)),
    stepping(TypeError, r"closure a function .*got a Tensor; write", torch.tensor(1.0), schedule=GREEDY),
    stepping(TypeError, "real number, got a torch.complex64 tensor", loss=torch.tensor(1j), schedule=GREEDY),
    stepping(RuntimeError, r"last of 3 micro-batches.*callbacks=\[ObserveLoss\(\)\]", CLOSURE, schedule=GREEDY),
    loading(ValueError, 'checkpoint: .*"best"', without_best, schedule=GREEDY),
    loading(ValueError, r'\[0\]\["exp_avg"\]: expected shape \(3, 2\) .*got \(4, 4\)', lambda: saved(shape=(4, 4))),
    loading(ValueError, OF_ADAMW, lambda: saved(torch.optim.Adagrad)),
    loading(ValueError, OF_ADAMW, lambda: saved(torch.optim.RMSprop)),
    loading(
        ValueError, "starting lr above 0 .*, got 0 in every", lambda: saved(torch.optim.AdamW, lr=0.0), schedule=GREEDY
    ),
]
