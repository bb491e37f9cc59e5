"""Checks of a recorder's arguments, and of when it may enqueue anything."""

from __future__ import annotations

import os
from typing import Any

import torch

from greedylr_fused.capture import capturing
from greedylr_fused.device_schedule import DeviceSchedule
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.step import is_number


def refuse_capture(what: str, device: torch.device) -> None:
    """Refuse a call that enqueues what no graph may repeat.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    if capturing(device):
        raise RuntimeError(
            f"{what}: expected a call before or after the capture of a CUDA graph, got one within it; construct the "
            "recorder before the warm-up steps, and close it when all is trained"
        )


def check(opt: Any, sinks: tuple[Any, ...], capacity: Any, every: Any, seconds: Any, grad_norms: Any) -> None:
    """Check the arguments of a Recorder.

    Raises:
        TypeError, ValueError: names the argument.
    """
    if not isinstance(opt, (FusedAdamW, DeviceSchedule)):
        raise TypeError(
            f"Recorder: expected a FusedAdamW or a DeviceSchedule, got {type(opt).__name__}; pass the optimizer "
            "itself, not what a framework has wrapped around it (its .optimizer or .optim)"
        )
    if not isinstance(grad_norms, bool):
        raise TypeError(f"grad_norms: expected True or False, got {grad_norms!r}; write True, for every step's")
    if grad_norms and not isinstance(opt, FusedAdamW):
        raise TypeError(
            f"grad_norms: expected False for a {type(opt).__name__}, which sees no gradients, got {grad_norms!r}; "
            "leave it out, or train with FusedAdamW(..., schedule=schedule)"
        )
    if not sinks and not grad_norms:
        raise TypeError('Recorder: expected paths and loggers as sinks, got none; write Recorder(opt, "run.jsonl")')
    for sink in sinks:
        if not callable(sink) and not isinstance(sink, (str, os.PathLike)):
            raise TypeError(
                f"Recorder: expected a path or log(metrics, step) as a sink, got {sink!r}; write tensorboard(writer) "
                "for a SummaryWriter, run.log for a run of W&B"
            )
    for name, value, least in (("capacity", capacity, 2), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}; leave it out for its default")
    if not is_number(seconds) or not seconds >= 0:
        raise ValueError(f"seconds: expected a number >= 0, got {seconds!r}; leave it out for its default")
