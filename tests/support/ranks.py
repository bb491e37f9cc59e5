"""Several ranks on this machine: `run(case, world)` calls a function on each, joined by gloo; `Ranks(world)` keeps the
processes for one case after another.

A case asserts on its own rank: what fails there fails the test, with the values at hand. A start takes a tenth of a
second, since the processes are forked from a server that has imported torch. Nothing can hang: when a rank fails the
others are killed, and all are when the time is over.
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
#: Seconds for the ranks to leave the group.
LEAVING = 30.0


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
    with Ranks(world) as ranks:
        return ranks(case, *args, timeout=timeout)


class Ranks:
    """The processes of one group, started when they are first called and after a case that failed.

    Called as `run` is, without the world. They leave together at the end of the `with` block.
    """

    def __init__(self, world):
        self._world, self._ranks, self._folder = world, [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self._ranks:
                _leave(self._ranks)
        finally:
            self._kill()

    def __call__(self, case, *args, timeout=60.0):
        work = pickle.dumps((case, args, _filters()))
        try:
            if not self._ranks:
                self._start()
            for rank in self._ranks:
                rank.give(work)
            return _answers(self._ranks, time.monotonic() + timeout)
        except BaseException:
            self._kill()
            raise

    def _start(self):
        if not dist.is_available() or not dist.is_gloo_available():
            pytest.skip("torch without gloo")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self._world):
            self._ranks.append(_Rank(rank, self._world, self._folder.name))

    def _kill(self):
        while self._ranks:
            self._ranks.pop().end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class _Rank:
    """One process, seen from the test."""

    def __init__(self, rank, world, folder):
        self.rank = rank
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = _server().Process(target=_work, args=(theirs, rank, world, folder), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here as the end of the pipe
        self.trace = Path(folder) / f"trace{rank}"
        self.result, self.error = None, ""

    def give(self, work):
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `read` will find
            self.pipe.send_bytes(work)

    def read(self):
        try:
            self.result, self.error = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join(GRACE)
            self.error = f"ended without an answer, exit code {self.process.exitcode}\n"

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
    _raise_errors(ranks)
    return [rank.result for rank in ranks]


def _leave(ranks):
    """The end of the group, by all at once: a rank that goes makes the collectives of the others fail."""
    for rank in ranks:
        rank.give(b"")
    deadline = time.monotonic() + LEAVING
    for rank in ranks:
        rank.process.join(max(deadline - time.monotonic(), 0))
        if rank.process.is_alive():
            rank.overdue("answered, but did not end in time")
    _raise_errors(ranks)


def _raise_errors(ranks):
    if errors := [f"rank {rank.rank} of {len(ranks)}: {rank.error}" for rank in ranks if rank.error]:
        raise AssertionError("\n".join(errors))


def _work(pipe, rank, world, folder):
    """What a process does: one case after another, until it is given none."""
    trace = open(os.path.join(folder, f"trace{rank}"), "w")  # noqa: SIM115  (open as long as the process is)
    faulthandler.register(signal.SIGUSR1, trace)
    torch.set_num_threads(1)
    joined = False
    with contextlib.suppress(EOFError):  # the test's own process is gone
        while work := pipe.recv_bytes():
            try:
                case, args, filters = pickle.loads(work)
                _warn_as(filters)
                if not joined:
                    store = dist.FileStore(os.path.join(folder, "store"), world)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=COLLECTIVE)
                    joined = True
                torch.manual_seed(20250711)
                answer = pickle.dumps((case(rank, *args), ""))
            except BaseException as error:
                found = traceback.TracebackException.from_exception(error, capture_locals=type(error) is AssertionError)
                answer = pickle.dumps((None, "".join(found.format())))
            pipe.send_bytes(answer)
        dist.destroy_process_group()


def _warn_as(filters):
    warnings.resetwarnings()
    for action, message, category, module, line in filters:
        warnings.filterwarnings(action, message, category, module, line, append=True)


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
