"""Several ranks on this machine: `run(case, world)` calls a function on each, joined by gloo.

A start takes a tenth of a second, since the processes are forked from a server that has imported torch. Nothing can
hang: when a rank fails the others are killed, and all are when the time is over.
"""

import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
import warnings
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from support.paths import ROOT

#: What the server imports once; a process that is forked from it starts with all of this.
PRELOAD = [
    *("pytest", "torch", "torch.distributed", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.optim", "torch._dynamo", "greedylr_fused"),
    *("torch.distributed.launcher.api", "matplotlib.pyplot", "rich.progress", "rich.table"),  # of the main job's ranks
]
#: Of one collective. Above it, whatever the ranks do, stands the time given to `run`.
COLLECTIVE = datetime.timedelta(seconds=30)
#: Seconds for the other ranks to tell of their own errors, once one has failed, and for killed ones to be gone.
GRACE = 0.5


def run(case, world, *args, timeout=60.0):
    """Call `case(rank, *args)` on each of `world` ranks of a gloo group.

    Args:
        case: a function of a module, found there by its name; what it returns can be pickled.
        world: number of processes.
        timeout: seconds for all of it.

    Returns:
        What the ranks returned, in their order.

    Raises:
        AssertionError: with the traceback of each rank that failed, or where each was that did not answer in time.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch without gloo")
    with tempfile.TemporaryDirectory() as folder:
        work = pickle.dumps((case, args))
        ranks = []
        try:
            for rank in range(world):
                ranks.append(_Rank(rank, (world, folder, _filters(), timeout, work)))
            return _answers(ranks, time.monotonic() + timeout)
        finally:
            for rank in ranks:
                rank.end()


class _Rank:
    """One process, seen from the test."""

    def __init__(self, rank, rest):
        self.rank = rank
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = _server().Process(target=_work, args=(theirs, rank, *rest), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here as the end of the pipe
        self.trace = Path(rest[1]) / f"trace{rank}"
        self.answered, self.result, self.error = False, None, ""

    def read(self):
        try:
            self.result, self.error = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join(GRACE)
            self.error = f"ended without an answer, exit code {self.process.exitcode}\n"
        self.answered = True

    def overdue(self, what):
        """Note where it is, as the handler of the signal writes it, which needs no help of the interpreter."""
        if not self.trace.exists():
            self.error = f"{what} before it could start\n"
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + GRACE
        while not (trace := self.trace.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.error = f"{what}, in\n{trace}"

    def end(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _answers(ranks, deadline):
    waiting = {rank.pipe: rank for rank in ranks}
    while waiting and (ready := wait(waiting, max(deadline - time.monotonic(), 0))):
        for pipe in ready:
            rank = waiting.pop(pipe)
            rank.read()
            if rank.error:
                deadline = min(deadline, time.monotonic() + GRACE)
    if not any(rank.error for rank in ranks):
        for rank in waiting.values():
            rank.overdue("did not answer in time")
        for rank in ranks if not waiting else ():
            rank.pipe.send_bytes(b"")
        for rank in ranks if not waiting else ():
            rank.process.join(max(deadline - time.monotonic(), 0))
            if rank.process.is_alive():
                rank.overdue("answered, but did not end in time")
    errors = [f"rank {rank.rank} of {len(ranks)}: {rank.error}" for rank in ranks if rank.error]
    if errors:
        raise AssertionError("\n".join(errors))
    return [rank.result for rank in ranks]


def _work(pipe, rank, world, folder, filters, timeout, work):
    """What a process does. It leaves the group only with the others: a rank that goes makes their collectives fail."""
    trace = open(os.path.join(folder, f"trace{rank}"), "w")  # noqa: SIM115  (open as long as the process is)
    faulthandler.register(signal.SIGUSR1, trace)
    torch.set_num_threads(1)
    warnings.resetwarnings()
    for action, message, category, module, line in filters:
        warnings.filterwarnings(action, message, category, module, line, append=True)
    try:
        case, args = pickle.loads(work)
        store = dist.FileStore(os.path.join(folder, "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=COLLECTIVE)
        torch.manual_seed(20250711)
        answer = pickle.dumps((case(rank, *args), ""))
    except BaseException:
        answer = pickle.dumps((None, traceback.format_exc()))
    pipe.send_bytes(answer)
    pipe.recv_bytes()
    dist.destroy_process_group()


def _filters():
    """The warning filters of the calling test, in order, as `warnings.filterwarnings` takes them."""
    return [
        (action, getattr(message, "pattern", ""), category, getattr(module, "pattern", ""), line)
        for action, message, category, module, line in warnings.filters
    ]


_SERVER = []


def _server():
    """The context whose server is running. It is given the path and the threads of its processes while it starts."""
    if not _SERVER:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        setting = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        before = {name: os.environ.get(name) for name in setting}
        os.environ.update(setting)
        try:
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        _SERVER.append(context)
    return _SERVER[0]
