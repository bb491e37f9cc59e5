"""Process groups, and a workload as DTensors over them."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.cases.workload import Workload
from benchmarks.options import Asked
from benchmarks.report import Report

#: Of each tensor of a case.
ELEMENTS = 64
#: Of one collective, and of the start of all processes.
LIMIT = datetime.timedelta(seconds=120)


@contextlib.contextmanager
def mesh(device: torch.device, store: Any = None, rank: int = 0, world: int = 1) -> Iterator[Any]:
    """A mesh of so many processes, by default of this one alone; over gloo on a CPU, NCCL on a GPU."""
    from torch.distributed.device_mesh import init_device_mesh

    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore() if store is None else store
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LIMIT)
    try:
        yield init_device_mesh(device.type, (world,))
    finally:
        dist.destroy_process_group()


def unavailable(device: torch.device) -> str | None:
    """Why there is no mesh, or None."""
    if dist.is_available() and (dist.is_nccl_available() or device.type == "cpu"):
        return None
    return f"torch {torch.__version__} is built without its process groups"


def shard(work: Workload, over: Any) -> None:
    """Turn parameters, gradients and moments into DTensors over the same memory."""
    from torch.distributed.tensor import DTensor, Shard

    def sharded(tensor: Tensor) -> Tensor:
        return DTensor.from_local(tensor, over, [Shard(0)])

    grads = [param.grad for param in work.params]
    work.params = [torch.nn.Parameter(sharded(param.detach())) for param in work.params]
    for param, grad in zip(work.params, grads, strict=True):
        param.grad = sharded(grad)
    work.states = [{name: sharded(moment) for name, moment in state.items()} for state in work.states]


def cases(
    measure: Callable[..., None], counts: dict[str, list[int]], asked: Asked, found: Report
) -> dict[str, Callable[..., None]]:
    """`measure(kind, count, asked, found)` for numbers of tensors by kind, without DTensors where there are none."""
    if "dtensor" in counts and (why := unavailable(asked.device)):
        found.leave_out("dtensor", why)
        counts = {kind: numbers for kind, numbers in counts.items() if kind != "dtensor"}
    return {
        f"{count} {kind} tensors": functools.partial(measure, kind, count, asked, found)
        for kind, numbers in counts.items()
        for count in numbers
    }
