"""The life of a recorder: who keeps whom alive, what comes at the end, what happens while a graph is captured."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from support.late_copies import LateCopies
from support.telemetry import numbers, optimizer, recorded, replay, step
from torch.utils._python_dispatch import TorchDispatchMode

from greedylr_fused.telemetry import Recorder


@contextlib.contextmanager
def no_collection():
    """Whatever goes away goes because nothing refers to it."""
    step(optimizer())  # the first of a process imports, and is held by the tracebacks of what cannot be
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_the_optimizer_is_not_kept_alive(tmp_path):
    with no_collection():
        opt = optimizer()
        recorder = Recorder(opt, tmp_path / "run.jsonl")
        step(opt)
        gone = weakref.ref(opt)
        del opt
        assert gone() is None
        recorder.close()
    assert numbers(tmp_path / "run.jsonl") == [1]


def test_a_recorder_that_nobody_holds_goes_with_its_optimizer(tmp_path):
    """And hands over what it has; also where its logger refers to the optimizer, once the cycle is collected."""
    with no_collection():
        opt = optimizer()
        recorder = weakref.ref(Recorder(opt, tmp_path / "run.jsonl"))
        step(opt)
        assert recorder() is not None and numbers(tmp_path / "run.jsonl") == []
        del opt
        assert recorder() is None
    assert numbers(tmp_path / "run.jsonl") == [1]
    seen = []
    opt = optimizer()
    Recorder(opt, lambda metrics, number, opt=opt: seen.append((number, len(opt.param_groups))))
    step(opt)
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None and seen == [(1, 2)]


def test_copies_of_an_optimizer_are_not_recorded(tmp_path):
    opt = optimizer()
    with Recorder(opt, tmp_path / "run.jsonl"):
        step(opt)
        other = copy.deepcopy(opt)
        step(other)
        step(opt)
    assert numbers(tmp_path / "run.jsonl") == [1, 2]


def test_a_block_ends_it(tmp_path):
    opt = optimizer()
    with pytest.raises(KeyboardInterrupt), Recorder(opt, tmp_path / "run.jsonl") as recorder:
        step(opt)
        raise KeyboardInterrupt
    step(opt)
    recorder.close()
    recorder.drain()
    assert numbers(tmp_path / "run.jsonl") == [1] and not opt._listeners


def test_detached(tmp_path):
    opt = optimizer()
    recorder, other = (Recorder(opt, tmp_path / name) for name in ("run.jsonl", "other.jsonl"))
    step(opt)
    recorder.detach()
    step(opt)
    assert opt._listeners == [other]
    recorder.drain()
    assert numbers(tmp_path / "run.jsonl") == [1]
    recorder.close()
    other.close()
    assert numbers(tmp_path / "other.jsonl") == [1, 2]


def test_the_device_fails_at_the_end(monkeypatch):
    """What has come to the host is handed over all the same."""
    opt = optimizer()
    recorder, kept = recorded(opt)
    step(opt)
    recorder._delivering = True  # as if it were still with a logger
    recorder.drain()
    recorder._delivering = False

    def fails(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with monkeypatch.context() as patch:
        patch.setattr("greedylr_fused.telemetry.ring.to_host", fails)
        with pytest.raises(RuntimeError, match="device-side assert"):
            recorder.close()
    assert kept.numbers == [1]
    recorder.close()


def test_while_a_graph_is_captured(monkeypatch):
    """A step writes its row, and nothing else is enqueued, which replays would repeat."""
    late = LateCopies(monkeypatch)
    opt = optimizer()
    recorder, kept = recorded(opt, capacity=4, seconds=0)
    step(opt)
    asked = len(late.under_way)
    with monkeypatch.context() as capture:
        for room in ("recorder", "checks"):
            capture.setattr(f"greedylr_fused.telemetry.{room}.capturing", lambda device: True)
        for _ in range(4):
            step(opt)
        recorder.drain(wait=True)
        assert len(late.under_way) == asked and not kept.steps
        for call in (recorder.close, lambda: Recorder(opt, print)):
            with pytest.raises(
                RuntimeError, match="expected a call before or after the capture of a CUDA graph, got one within it"
            ):
                call()
    step(opt)
    with pytest.warns(RuntimeWarning, match="1 step was lost"):
        recorder.close()
    assert kept.numbers == [1, 3, 4, 5, 6]


def test_a_captured_graph_may_write_for_as_long_as_the_optimizer_lives(monkeypatch):
    """Into the ring of that time, whatever became of the recorder."""
    with no_collection():
        opt = optimizer()
        recorder, _ = recorded(opt)
        monkeypatch.setattr("greedylr_fused.telemetry.recorder.capturing", lambda device: True)
        for _ in range(2):
            step(opt)
        monkeypatch.undo()
        rings = [weakref.ref(recorder._ring._memory)]
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        opt.metrics()  # makes another ring, for two groups
        rings.append(weakref.ref(recorder._ring._memory))
        step(opt)
        recorder.close()
        del recorder
        assert rings[0]() is not None, "captured"
        assert rings[1]() is None, "never captured"
        del opt
        assert rings[0]() is None


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_ranks_need_not_all_record():
    """What a recorder adds to a step is three operations on memory of its own: nothing that another rank waits for."""
    opt = optimizer()
    recorder, _ = recorded(opt)
    step(opt)
    with Operations() as operations:
        recorder.after_step()
    assert operations.names == ["aten.remainder.Tensor_out", "aten.index_copy_.default", "aten.add_.Tensor"]
    recorder.close()


def test_what_replays_write_needs_no_host():
    opt = optimizer()
    recorder, kept = recorded(opt, capacity=64)
    for _ in range(3):
        replay(opt, recorder)
    assert not kept.steps
    recorder.after_replay()
    recorder.drain()
    assert kept.numbers == [1, 2, 3]
    recorder.close()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((object(), print), {}, TypeError, "expected a FusedAdamW or a DeviceSchedule, got object"),
        ((None,), {}, TypeError, "expected paths and loggers as sinks, got none"),
        ((None, 7), {}, TypeError, r"expected a path or log\(metrics, step\) as a sink, got 7"),
        ((None, print), {"capacity": 1}, ValueError, "capacity: expected an integer >= 2, got 1"),
        ((None, print), {"capacity": 8.0}, ValueError, "capacity: expected .*, got 8.0"),
        ((None, print), {"every": 0}, ValueError, "every: expected an integer >= 1, got 0"),
        ((None, print), {"every": True}, ValueError, "every: expected .*, got True"),
        ((None, print), {"seconds": -1}, ValueError, "seconds: expected a number >= 0, got -1"),
        ((None, print), {"seconds": float("nan")}, ValueError, "seconds: expected .*, got nan"),
    ],
)
def test_arguments_that_are_refused(arguments, options, error, says):
    opt = optimizer()
    with pytest.raises(error, match=says):
        Recorder(arguments[0] or opt, *arguments[1:], **options)
    assert not opt._listeners


def test_a_recorder_without_sinks_records_nothing(recwarn):
    """It stands for a rank that measures norms for the one that records: no ring, and nothing that could be lost."""
    opt = optimizer()
    with Recorder(opt, capacity=2, grad_norms=True) as recorder:
        assert opt._listeners == []
        for _ in range(5):
            step(opt)
        recorder.drain(wait=True)
        recorder.detach()
    assert opt.metrics().grad_norm_l1 > 0 and not recwarn.list
