"""Runs checks as processes of their own, each with a time limit, so that one that hangs or dies costs only itself.

Standard library only: it runs where nothing is installed, to say so.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.outcome import FAILED, PASSED, SKIPPED, Done, Result, counted

#: Seconds that a process has to end by itself when its time is over.
GRACE = 3.0


@dataclass(frozen=True)
class Command:
    """One process.

    Attributes:
        argv: program and arguments.
        limit: seconds.
        env: environment variables on top of the runner's.
        unusable: texts in its output that say that the machine cannot do this: a failure with one of them is a skip.
        fine: exit codes that are no failure.
    """

    argv: Sequence[str]
    limit: float
    env: dict[str, str] = field(default_factory=dict)
    unusable: tuple[str, ...] = ()
    fine: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Stage:
    """One line of the final table.

    Attributes:
        name: shown in the table.
        plan: makes the commands, or the reason for leaving the stage out. Called when the stages before are done.
        summary: makes the table's detail from what a passed command printed. Default: what pytest counted.
    """

    name: str
    plan: Callable[[], list[Command] | str]
    summary: Callable[[str], str] = counted


class Runner:
    """Runs groups of stages one after the other, the commands within a group side by side.

    Args:
        folder: where processes start.
        env: their environment.
        seconds: for everything; what does not fit is cut short or left out, and said.
        say: shows a line of progress.
    """

    def __init__(self, folder: Path, env: dict[str, str], seconds: float, say: Callable[[str], object] = print) -> None:
        self._folder, self._env, self._say = folder, env, say
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self.results: list[Result] = []
        self._alive: set[subprocess.Popen[str]] = set()

    def run(self, group: Sequence[Stage], workers: int = 1, reserve: float = 0.0) -> list[Result]:
        """Run a group with up to so many processes at a time, and leave `reserve` seconds; returns its results."""
        plans = [(stage, stage.plan()) for stage in group]
        results = []
        with ThreadPoolExecutor(max_workers=workers) as pool:
            running = [
                (
                    stage,
                    plan
                    if isinstance(plan, str)
                    else [pool.submit(self._process, command, reserve) for command in plan],
                )
                for stage, plan in plans
            ]
            try:
                for stage, found in running:
                    results.append(_result(stage, found if isinstance(found, str) else [f.result() for f in found]))
                    passed, result = time.monotonic() - self._begin, results[-1]
                    self._say(f"{passed:4.0f} s  {result.name}: {result.outcome}  {result.detail}")
            except BaseException:  # interrupted: leave no process behind
                self._end = 0.0
                for process in list(self._alive):
                    _kill(process, signal.SIGKILL)
                raise
        self.results += results
        return results

    def _process(self, command: Command, reserve: float) -> Done:
        begin, argv = time.monotonic(), list(map(str, command.argv))
        limit = min(command.limit, self._end - reserve - begin)
        if limit < 1.0:
            return Done(argv, SKIPPED, "no time left", begin, 0.0, "")
        try:
            process = subprocess.Popen(
                argv,
                cwd=self._folder,
                env=self._env | command.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that what it started ends with it
            )
        except OSError as error:
            return Done(argv, FAILED, f"cannot be started: {error}", begin, 0.0, "")
        self._alive.add(process)
        try:
            output, hung = process.communicate(timeout=limit)[0], False
        except subprocess.TimeoutExpired:
            output, hung = _end(process), True
        self._alive.discard(process)
        seconds = time.monotonic() - begin
        if hung:
            return Done(argv, FAILED, f"not done within {limit:.0f} s", begin, seconds, output)
        if process.returncode in command.fine:
            return Done(argv, PASSED, "", begin, seconds, output)
        for text in command.unusable:
            if text in output:
                return Done(argv, SKIPPED, f"cannot run here: {text}", begin, seconds, output)
        return Done(argv, FAILED, _why(process.returncode, output), begin, seconds, output)


def _end(process: subprocess.Popen[str]) -> str:
    """End a process and all that it started; returns what it had printed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        _kill(process, how)
        try:
            return process.communicate(timeout=GRACE)[0]
        except subprocess.TimeoutExpired:
            continue
    return "(its output could not be read: a process outside of its group holds on to it)\n"


def _kill(process: subprocess.Popen[str], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def _result(stage: Stage, done: list[Done] | str) -> Result:
    if isinstance(done, str):
        return Result(stage.name, SKIPPED, done, 0.0)
    first = min((one.begin for one in done), default=0.0)
    seconds = max((one.begin + one.seconds for one in done), default=0.0) - first
    failed = [one for one in done if one.outcome == FAILED]
    skipped = [one for one in done if one.outcome == SKIPPED]
    if failed:
        more = f" (and {len(failed) - 1} of {len(done)} processes more)" if len(failed) > 1 else ""
        return Result(stage.name, FAILED, failed[0].detail + more, seconds, done)
    detail = stage.summary("".join(one.output for one in done if one.outcome == PASSED))
    if skipped:
        whole = len(skipped) == len(done)
        reason = f"{len(skipped)} of {len(done)} processes: {skipped[0].detail}"
        return Result(
            stage.name,
            SKIPPED if whole else PASSED,
            skipped[0].detail if whole else f"{detail}; left out {reason}",
            seconds,
            done,
        )
    return Result(stage.name, PASSED, detail, seconds, done)


def _why(returncode: int, output: str) -> str:
    """The first lost test, or the last line of the output."""
    lost = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    if lost:
        return f"{counted(output)}: {lost[0].rpartition('/')[2]}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ended = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"{ended}: {lines[-1][:160]}" if lines else ended
