"""The processes that train one model together: how they share the work, and what they agree on before one acts.

torchrun starts one process, a rank, per device. DDP keeps a whole model on each and averages gradients. FSDP
(`fully_shard`) keeps a part of every parameter, and so of its gradient and moments, on each. Either way a step is that
of one process on the whole batch, within rounding. The loss needs nothing here: `FusedAdamW` averages it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from errors import UsageError, WriteError
from muon import MuonAndFused

ENGINES = {"fsdp": "parameters, gradients and moments in parts", "ddp": "a whole model on each rank"}
LIMIT = datetime.timedelta(minutes=10)  # for one exchange between ranks, that of waiting for a checkpoint included
Result = TypeVar("Result")


class Ranks:
    """This process among those of the run. Alone it is rank 0 of 1, and agrees with itself.

    Args:
        rank, size: which process, of how many.
        launched: whether torchrun started it.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, launched: bool = False) -> None:
        self.rank, self.size, self._launched = rank, size, launched
        self.engine: str | None = None
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if launched else 0

    def use(self, engine: str | None) -> None:
        """Share the model by this engine: "fsdp", "ddp", or None for one process.

        Raises:
            UsageError: an engine without torchrun, or torchrun without an engine.
        """
        if self._launched and engine is None:
            allowed = ", or ".join(f"--{name} ({meaning})" for name, meaning in ENGINES.items())
            raise UsageError(f"started by torchrun, which needs to know how the ranks share the model: add {allowed}")
        if engine and not self._launched:
            command = f"torchrun --nproc-per-node 2 examples/pretrain.py --{engine}"
            raise UsageError(f"--{engine} is for several processes, and torchrun starts them: {command}")
        self.engine = engine

    def __str__(self) -> str:
        return f"{self.engine} over {self.size} rank{'s' if self.size > 1 else ''}" if self.engine else "one process"

    @property
    def job(self) -> str:
        """The same for all starts by one torchrun process, and by no other, whatever name its user gave the job; empty
        if this process was started without.
        """
        name = os.environ.get("TORCHELASTIC_RUN_ID", "")
        return f"{name} of process {os.getppid()} on {socket.gethostname()}" if self._launched else ""

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as the engine runs it. Comes before the optimizer, which takes the parameters from here."""
        if self.engine == "fsdp":
            mesh = init_device_mesh(device.type, (self.size,))
            for block in model.blocks:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh)  # gathered one block at a time
            fully_shard(model, mesh=mesh)  # the rest: embedding and last norm
        elif self.engine == "ddp":
            model = DistributedDataParallel(model)
        return model

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around one micro-batch: DDP sends gradients with the last of a step. FSDP sends them with each, since to wait
        would be to keep whole gradients.
        """
        return contextlib.nullcontext() if last or self.engine != "ddp" else model.no_sync()  # type: ignore[operator]

    def share(self, windows: Tensor) -> Tensor:
        """The part of a batch that is this rank's."""
        return windows[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over the ranks. On the host: waits for the other processes, not for a device."""
        if self.size == 1:
            return values
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def together(self, act: Callable[[], Result]) -> Result:
        """What `act` returns on this rank, once it is done on all of them.

        Raises:
            UsageError, WriteError: it failed on some rank; the same on every rank.
        """
        result, error = _attempt(act)
        errors = [error]
        if self.size > 1:
            errors = [None] * self.size
            dist.all_gather_object(errors, error)
        for rank, found in enumerate(errors):
            if found is not None:
                raise found if None not in errors else type(found)(f"rank {rank}: {found}")
        return result  # type: ignore[return-value]

    def first(self, act: Callable[[], Result]) -> Result:
        """What `act` returns on rank 0, the only one that does it: whatever is written or shown.

        Raises:
            UsageError, WriteError: it failed; the same on every rank.
        """
        outcome = _attempt(act) if self.rank == 0 else (None, None)
        if self.size > 1:
            sent = list(outcome)
            dist.broadcast_object_list(sent, src=0)
            outcome = (sent[0], sent[1])
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]

    def gathered(self, own: Any) -> list[Any]:
        """What each rank has, in their order, on rank 0; on the others nothing that is of use."""
        found = [own] * self.size
        if self.size > 1:
            dist.gather_object(own, found if self.rank == 0 else None)
        return found


def _attempt(act: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return act(), None
    except (UsageError, WriteError) as error:
        return None, error


# One format for all engines: whole tensors on the CPU of rank 0, under the names of the model's own parameters.
_WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What is saved of a model and its optimizer. Every rank takes part; only rank 0 gets it."""
    model_state = sharded.get_model_state_dict(model, options=_WHOLE)
    if isinstance(optimizer, MuonAndFused):
        states = sharded.get_optimizer_state_dict(model, optimizer.optimizers, options=_WHOLE)
        schedule = {"control": optimizer.schedule.state_dict()["control"]}
        return {"model": model_state, "optimizer": states, "schedule": schedule}
    if not isinstance(optimizer, torch.optim.Optimizer):  # the baseline, on one rank
        return {"model": model_state, "optimizer": optimizer.state_dict()}
    return {"model": model_state, "optimizer": sharded.get_optimizer_state_dict(model, optimizer, options=_WHOLE)}


def load_whole_state(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Load it, under any engine and over any number of ranks; each keeps its part."""
    sharded.set_model_state_dict(model, state["model"], options=_WHOLE)
    if isinstance(optimizer, MuonAndFused):
        sharded.set_optimizer_state_dict(model, optimizer.optimizers, state["optimizer"], options=_WHOLE)
        optimizer.schedule.load_state_dict(state["schedule"])
    elif not isinstance(optimizer, torch.optim.Optimizer):
        optimizer.load_state_dict(state["optimizer"])
    else:
        sharded.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_WHOLE)


def started_again_on_several_nodes() -> bool:
    """Where the torchrun of each node counts starts by itself, and processes that count differently would wait for each
    other until the time is over.
    """
    nodes, restarts = (os.environ.get(name, "") for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    return nodes not in ("", "1") and restarts not in ("", "0")


def _started_by_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, connected: over the network on the host, over NCCL between GPUs."""
    if not _started_by_torchrun():
        yield Ranks()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # torchrun keeps one store over all restarts; without a name for each, ranks connect to addresses of dead ones.
    store, rank, size = next(dist.rendezvous("env://", timeout=LIMIT))
    ranks = Ranks(rank, size, launched=True)
    store = dist.PrefixStore(f"start {ranks.restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LIMIT)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End the process with this exit code; a rank without the end of its interpreter.

    After FSDP, torch's DTensor caches keep the process group alive, destroyed or not, and with it gloo's threads. One
    that lets go of the last exchange's tensor while the interpreter ends aborts the process (pytorch issue 190489).
    """
    if not _started_by_torchrun():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
