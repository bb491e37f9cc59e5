"""Runs in processes of one thread each, several at a time, until all are done or the time is over."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import training
from benchmarks.evidence.plan import Plan, Run
from benchmarks.evidence.results import Results
from benchmarks.evidence.tasks import TASKS

LONGEST = 3600.0  # seconds in which no run ends, after which something hangs


@dataclass(frozen=True)
class Job:
    """What a process needs to know.

    Attributes:
        run: which.
        device: where.
        folder: for parameters that runs start from.
        norms: for `refined`.
    """

    run: Run
    device: str
    folder: Path
    norms: tuple[float, ...] | None = None


def work(job: Job) -> dict[str, Any]:
    """One run, in a process of the pool."""
    device = torch.device(job.device)
    return training.execute(job.run, device, _start(job.run.task, job.folder, device), job.norms)  # type: ignore[no-any-return]


@functools.cache
def _start(task: str, folder: Path, device: torch.device) -> dict[str, torch.Tensor] | None:
    return training.starting_point(task, folder, device)


def _prepare(task: str, folder: Path, device: torch.device) -> None:
    _start(task, folder, device)


def _begin() -> None:
    """One thread to compute, and one that ends this process with the one that began it, however that ended."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def run_all(
    plan: Plan,
    results: Results,
    *,
    device: torch.device,
    folder: Path,
    processes: int,
    minutes: float,
    say: Callable[[str], object],
) -> int:
    """Do what the plan finds missing.

    Args:
        plan: what is to be done.
        results: where it is noted.
        device: where it is run.
        folder: for parameters that runs start from; deleting it costs the time to train them again.
        processes: at a time.
        minutes: of wall time after which no run begins any more.
        say: takes a line of progress.

    Returns:
        Runs done now.

    Raises:
        RuntimeError: no run ended for an hour.
    """
    until, begin, done = time.monotonic() + 60 * minutes, time.monotonic(), 0
    results.repair()
    spawn = multiprocessing.get_context("spawn")  # a forked torch would inherit locks of threads that are not there
    with ProcessPoolExecutor(processes, spawn, initializer=_begin) as pool:
        for share in plan.preset.shares:
            if TASKS[share.task].start is not None:  # before there are two that would make it at once
                pool.submit(_prepare, share.task, folder, device).result(timeout=LONGEST)
        active: dict[Future[dict[str, Any]], Run] = {}
        while True:
            if time.monotonic() < until:
                for run in plan.missing():
                    if len(active) >= processes:
                        break
                    if run not in active.values():
                        active[pool.submit(work, _job(run, plan, results, device, folder))] = run
            if not active:
                return done
            ended, _ = wait(active, timeout=LONGEST, return_when=FIRST_COMPLETED)
            if not ended:
                pool.shutdown(wait=False, cancel_futures=True)
                raise RuntimeError(f"no run ended within {LONGEST:.0f} s, of {[*active.values()]}; begin again")
            for future in ended:
                run = active.pop(future)
                results.add(run, outcome := future.result())
                done += 1
                say(_line(run, outcome, done, time.monotonic() - begin))


def _job(run: Run, plan: Plan, results: Results, device: torch.device, folder: Path) -> Job:
    norms = None
    if run.schedule == "refined":
        share = next(share for share in plan.preset.shares if share.task == run.task)
        source = plan.norms_run(share)
        found = results.get(source) if source else None
        norms = tuple(math.nan if norm is None else norm for norm in found["norms"]) if found else None
    return Job(run, str(device), folder, norms)


def _line(run: Run, outcome: dict[str, Any], done: int, seconds: float) -> str:
    final = "-" if outcome["final"] is None else f"{outcome['final']:.4f}"
    what = f"{run.task} {run.schedule} {run.storage} lr {run.lr:g} seed {run.seed} {run.scenario}"
    failed = f"  failed: {outcome['failed']}" if outcome["failed"] else ""
    return f"{done:5d} {seconds / 60:6.1f} min  {what}: {final}  ({outcome['seconds']:.1f} s){failed}"
