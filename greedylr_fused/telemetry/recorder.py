"""Telemetry: every step of a run, recorded on the device and handed to files and loggers, with no wait in a step.

    from greedylr_fused.telemetry import Recorder, tensorboard

    with Recorder(opt, "run.jsonl", tensorboard(writer)):
        train(opt)

A step enqueues a few small operations that write a row of a ring on the device (ring.py). Now and then the ring is
copied to the host, which takes over the copies that have arrived (history.py) and hands the steps on (run_log.py,
loggers.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections import deque
from time import monotonic

from greedylr_fused.capture import capturing
from greedylr_fused.device_schedule import DeviceSchedule
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.telemetry import checks
from greedylr_fused.telemetry.history import History, Step
from greedylr_fused.telemetry.loggers import Feed, Log, tensorboard
from greedylr_fused.telemetry.ring import END, Copy, Ring
from greedylr_fused.telemetry.run_log import RunLog
from greedylr_fused.warning import warn

__all__ = ["Recorder", "Step", "tensorboard"]

Sink = str | os.PathLike[str] | Log

_OPEN: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Recorder:
    """Recorder of every step of an optimizer, from construction until `close()`, in order, for all sinks.

    Nothing in a step waits for the device or raises. A step asks for the rows when half the ring is full or `seconds`
    have passed, and sinks get them in later steps, in `drain()` or in `close()`. Replays of a CUDA graph write rows,
    too, but the host is told only of those of a CapturedStep: for your own graph call `drain()` at least once in
    `capacity` replays. Rows that were overwritten are counted, warned of, and noted in the file.

    A logger that raises is warned of and dropped; where a file cannot be written, that is warned of, and its lines are
    kept and tried again. Training goes on, and no other sink misses a step.

    All ranks hold the same numbers, and nothing is sent between them: construct a recorder on rank 0 alone. It does not
    keep the optimizer alive. At the end of the process open recorders are closed; a forked process records nothing.

    Args:
        opt: a FusedAdamW or a DeviceSchedule.
        sinks: each the path of a file, to which one JSON object per step is appended (docs/telemetry.md has its keys),
            or a logger: any `log(metrics, step)`, called with a dictionary of floats (`Metrics.scalars`) and the number
            of the step.
        capacity: rows of the ring, at least 2. Each has 38 numbers of 8 bytes, and 5 more per parameter group.
        every: loggers get only those steps whose number is a multiple of this; files get all.
        prefix: of the names of metrics for loggers, such as "optimizer/".
        run: name of the run in each line of a file, where several runs share one.
        seconds: time after which a step asks for what has been recorded, >= 0. Default: 10.
        grad_norms: let each step measure the L2 and L1 norm of all gradients, before clipping and after unscaling, for
            `schedules.Refined` (arXiv 2310.07831). Each step then reads the gradients before the update, as for
            clipping, as long as the optimizer lives, even if a file cannot be written. Every rank must construct a
            recorder with this, without sinks where it is to record nothing. Default: False.

    Raises:
        TypeError, ValueError: another kind of optimizer or sink, or an option out of range.
        OSError: a file cannot be written.
        RuntimeError: a CUDA graph is being captured; or `grad_norms` after one was.
    """

    _closed = True  # until all is constructed

    def __init__(
        self,
        opt: FusedAdamW | DeviceSchedule,
        *sinks: Sink,
        capacity: int = 1024,
        every: int = 1,
        prefix: str = "",
        run: str | None = None,
        seconds: float = 10.0,
        grad_norms: bool = False,
    ) -> None:
        checks.check(opt, sinks, capacity, every, seconds, grad_norms)
        checks.refuse_capture("Recorder()", opt._control.device)
        norms = grad_norms or opt._control.measures_l1
        self._files: list[RunLog] = []
        self._feeds: list[Feed] = []
        for sink in sinks:
            if callable(sink):
                self._feeds.append(Feed(sink, every=every, prefix=prefix))
            else:
                self._files.append(RunLog(sink, run=run, norms=norms))
        if grad_norms:
            opt._measure_norms()  # type: ignore[union-attr]  # a FusedAdamW, as was checked
        self._opt = weakref.ref(opt)
        if not sinks:
            return
        self._capacity, self._seconds = capacity, seconds
        self._history = History()
        self._ring = Ring(opt._control, capacity)
        self._ring.mark()
        self._copies: deque[Copy] = deque()
        self._unseen, self._asked = 0, monotonic()
        self._lost = 0  # and not yet warned of
        self._delivering = self._closed = False
        opt._listeners.append(self)
        _OPEN.add(self)

    def after_step(self) -> None:
        """Write a row for the step that the optimizer has enqueued."""
        self._ring.write()
        if capturing(self._ring.device):
            self._keep_ring()
        else:
            self.after_replay()

    def after_replay(self) -> None:
        """Ask for rows when due, and hand over what has arrived; a replayed graph has written its row itself."""
        self._unseen += 1
        if 2 * self._unseen >= self._capacity or monotonic() - self._asked >= self._seconds:
            self._ask()
        if self._copies and self._copies[0].arrived():
            self._take_over()
            self._hand_over()

    def _keep_ring(self) -> None:
        """Keep the ring as long as the graph being captured, which writes into it at every replay."""
        opt = self._opt()
        if opt is not None and not any(kept is self._ring for kept in opt._captures):
            opt._captures.append(self._ring)

    def after_restart(self) -> None:
        """Mark that steps go on from another state, in a new ring if that lies in other memory."""
        opt = self._opt()
        self._ask()
        if opt is not None and not self._ring.records(opt._control):
            self._ring = Ring(opt._control, self._capacity)
        self._ring.mark()

    def drain(self, *, wait: bool = False) -> None:
        """Hand what has arrived to the sinks, and ask for all that was recorded since. Does nothing while a graph is
        captured. Call this on the stream of the steps.

        Args:
            wait: whether to wait for the device, so that all recorded steps are handed over now: for a checkpoint.
        """
        if not self._closed and not capturing(self._ring.device):
            self._ask()
            self._take_over(wait=wait)
            self._hand_over()

    def detach(self) -> None:
        """Record no more steps. Sinks still get those recorded before, by `drain()` or `close()`."""
        opt = self._opt()
        if opt is not None and self in opt._listeners:
            opt._listeners = [listener for listener in opt._listeners if listener is not self]
            if not capturing(self._ring.device):
                self._ring.mark(END)

    def close(self) -> None:
        """Record no more steps, and hand over all recorded ones. Waits for the device; once closed, does nothing.

        Raises:
            OSError: a file cannot be written; its lines are kept, and the next call tries again.
            RuntimeError: a CUDA graph is being captured.
        """
        if self._closed:
            return
        checks.refuse_capture("Recorder.close()", self._ring.device)
        self.detach()
        try:
            self._ask()
            self._take_over(wait=True)
        finally:  # also if the device has failed
            self._hand_over(closing=True)
        self._closed = True
        _OPEN.discard(self)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self) -> None:
        self._copies.append(self._ring.copy())
        self._unseen, self._asked = 0, monotonic()

    def _take_over(self, *, wait: bool = False) -> None:
        """Put the steps that have arrived into the queues of the sinks."""
        while self._copies and (wait or self._copies[0].arrived()):
            if wait:
                self._copies[0].wait()
            for step in self._history.add(*self._copies.popleft().read()):
                self._lost += step.lost
                for file in self._files:
                    file.put(step)
                for feed in self._feeds:
                    feed.put(step)
            self._lost, self._history.lost_at_end = self._lost + self._history.lost_at_end, 0

    def _hand_over(self, *, closing: bool = False) -> None:
        """Flush the sinks, and warn of what went wrong."""
        if self._delivering:  # a logger has called drain()
            return
        self._delivering = True
        try:
            failed = self._flush_files()
            problems = self._flush_feeds()
        finally:
            self._delivering = False
        if self._lost:
            lost = "1 step was" if self._lost == 1 else f"{self._lost} steps were"
            problems.append(
                f"{lost} lost: expected drain() at least every {self._capacity} steps, got steps overwritten before "
                "it, or replayed from a graph captured before the recorder; call it more often, or construct one "
                "with a larger capacity, before the capture"
            )
            self._lost = 0
        if not closing:
            problems += [
                f"{file.path} was not written ({error.strerror}); its last {file.waiting} lines are kept, and tried "
                "again with the next; make room for them, or allow to write there"
                for file, error in failed
            ]
        for problem in problems:
            warn(f"Recorder: {problem}", RuntimeWarning)
        if closing and failed:
            raise failed[0][1]

    def _flush_feeds(self) -> list[str]:
        """Flush loggers, drop those that raise, and return what went wrong."""
        problems = []
        for feed in tuple(self._feeds):
            try:
                feed.flush()
            except Exception as error:
                self._feeds.remove(feed)
                problems.append(
                    f"the logger {feed.log!r}: expected log(metrics, step) that takes a dictionary of floats and an "
                    f"int, got {error!r} raised by it; it gets no more steps: correct it and construct another Recorder"
                )
        return problems

    def _flush_files(self) -> list[tuple[RunLog, OSError]]:
        """Flush files, and return those that could not be written, with the errors."""
        failed = []
        for file in self._files:
            try:
                file.flush()
            except OSError as error:
                failed.append((file, error))
        return failed

    def _leave_to_parent(self) -> None:
        """Stop in a process that was forked off: files and loggers are its parent's."""
        opt = self._opt()
        if opt is not None:
            opt._listeners = [listener for listener in opt._listeners if listener is not self]
        self._closed, self._files, self._feeds = True, [], []


@atexit.register
def _close_all() -> None:
    with contextlib.ExitStack() as stack:  # all of them, whatever one raises
        for recorder in tuple(_OPEN):
            stack.callback(recorder.close)


def _leave_all() -> None:
    for recorder in tuple(_OPEN):
        recorder._leave_to_parent()
    _OPEN.clear()


if hasattr(os, "register_at_fork"):  # not where processes cannot fork
    os.register_at_fork(after_in_child=_leave_all)
