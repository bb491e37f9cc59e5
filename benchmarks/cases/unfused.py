"""What one writes around an optimizer today: conversion, clipping, a schedule on the host."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.cases.workload import Workload
from benchmarks.harness import Step
from greedylr_fused import GreedyLR
from greedylr_fused.schedules.loss_spec import LossSpec

LR, MAX_GRAD_NORM = 1e-6, 1.0
ADAMW: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SCHEDULE = GreedyLR(patience=10, smooth=True, window_size=50, min_lr=LR / 10, max_lr=LR * 10)


def of_one_type(work: Workload) -> tuple[list[torch.nn.Parameter], Step | None]:
    """Parameters whose gradients have their type, as torch wants them, and what brings those up to date."""
    if work.mix.param == work.mix.grad:
        return work.params, None
    params = [torch.nn.Parameter(param.detach()) for param in work.params]
    grads = [param.grad for param in work.params]
    for param in params:
        param.grad = torch.empty_like(param)
    wide = [param.grad for param in params]
    return params, lambda: torch._foreach_copy_(wide, grads)


def in_float32(work: Workload) -> list[torch.nn.Parameter]:
    """The parameters if they are float32, or else copies of them that are, with copies of the gradients."""
    if work.mix.param == torch.float32:
        return work.params
    params = [torch.nn.Parameter(param.detach().float()) for param in work.params]
    for param, of in zip(params, work.params, strict=True):
        assert of.grad is not None
        param.grad = of.grad.float()
    return params


def unfused(
    options: frozenset[str],
    optimizer: torch.optim.Optimizer,
    params: list[torch.nn.Parameter],
    work: Workload,
    update: Step,
    convert: Step | None = None,
) -> Step:
    """One step as one writes it today.

    Args:
        options: "clip", "greedy" or both.
        optimizer: for the schedule.
        params: those to clip.
        work: has the loss.
        update: the optimizer's own step.
        convert: see `of_one_type`.
    """
    clip = "clip" in options
    observe = _host_greedy(optimizer, work) if "greedy" in options else None

    def step() -> None:
        if convert is not None:
            convert()
        if clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM)
        update()
        if observe is not None:
            observe()

    return step


def _host_greedy(optimizer: torch.optim.Optimizer, work: Workload) -> Step:
    """GreedyLR that waits for the loss: that of transformers where it is installed, or the same decisions in floats."""
    loss, lr = work.loss, [float(group["lr"]) for group in optimizer.param_groups]
    try:
        upstream = importlib.import_module("transformers.optimization").GreedyLR
    except (ImportError, AttributeError):
        spec = LossSpec(SCHEDULE, lr)

        def observe() -> None:
            for group, rate in zip(optimizer.param_groups, spec.observe(loss.item()), strict=True):
                group["lr"] = rate

        return observe
    same = {name: getattr(SCHEDULE, name) for name in ("factor", "patience", "smooth", "window_size")}
    scheduler = upstream(optimizer, min_lr=LR / 10, max_lr=LR * 10, **same)
    return lambda: scheduler.step(loss.item())
