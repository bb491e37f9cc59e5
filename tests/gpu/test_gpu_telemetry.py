"""The recorder on a GPU: rows by captured graphs that nobody tells of, copies that arrive late, no wait in a step."""

import gc
import math

import pytest
import torch
from machines import WARM_UP, Training

from greedylr_fused.telemetry import Recorder

REPLAYS = 40
CAPACITY = 16


class Kept:
    """A logger that keeps what it gets."""

    def __init__(self):
        self.numbers, self.metrics = [], []

    def __call__(self, metrics, number):
        self.numbers.append(number)
        self.metrics.append(metrics)


def recorded(machine, **options):
    """A training, its recorder and what that hands over."""
    training, kept = Training(machine, max_grad_norm=0.01), Kept()
    return training, Recorder(training.opt, kept, capacity=CAPACITY, seconds=math.inf, **options), kept


def test_steps_are_recorded_without_a_wait(machine):
    """As eager steps show them one by one, with waits."""
    training, recorder, kept = recorded(machine)
    training.step(0)  # what allocates and compiles may wait
    with machine.refusing_to_wait():
        for i in range(1, REPLAYS):
            training.step(i)
            if i % 10 == 0:
                recorder.drain()
    recorder.close()
    eager, shown = Training(machine, max_grad_norm=0.01), []
    for i in range(REPLAYS):
        eager.step(i)
        shown.append(machine.metrics(eager.opt).scalars())
    assert kept.numbers == list(range(1, REPLAYS + 1)) and kept.metrics == shown


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
def test_replays_are_recorded(machine, told):
    """Whoever replays a graph tells nobody, and drains; or what replays it tells the listeners."""
    training, recorder, kept = recorded(machine)
    replay = training.captured()
    with machine.refusing_to_wait():
        for i in range(WARM_UP, WARM_UP + REPLAYS):
            replay(i)
            if told and machine.on_gpu:  # a rehearsal's replay is a step, which tells by itself
                recorder.after_replay()
            elif i % (CAPACITY // 2) == 0:
                recorder.drain()
    recorder.close()
    eager, shown = Training(machine, max_grad_norm=0.01), []
    for i in [*range(WARM_UP), *range(WARM_UP, WARM_UP + REPLAYS)]:
        eager.step(i)
        shown.append(machine.metrics(eager.opt).scalars())
    assert kept.numbers == list(range(1, WARM_UP + REPLAYS + 1)) and kept.metrics == shown


def test_replays_that_are_not_drained_are_counted(gpu):
    training, recorder, kept = recorded(gpu)
    replay = training.captured()
    recorder.drain()
    for i in range(CAPACITY + 5):
        replay(i)
    with pytest.warns(RuntimeWarning, match="5 steps were lost"):
        recorder.close()
    assert kept.numbers == [*range(1, WARM_UP + 1), *range(WARM_UP + 6, WARM_UP + 6 + CAPACITY)]


def test_a_graph_outlives_its_recorder(gpu):
    """Its replays go on writing into the ring, which nobody else is given meanwhile."""
    training, recorder, kept = recorded(gpu)
    replay = training.captured()
    replay(0)
    recorder.close()
    del recorder
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.zeros(100_000, device="cuda") for _ in range(50)]
    for i in range(CAPACITY):
        replay(i)
    gpu.wait()
    assert not any(bool(other.any()) for other in others)
    assert kept.numbers == list(range(1, WARM_UP + 2))


def test_calls_while_a_graph_is_captured(gpu):
    training, recorder, kept = recorded(gpu)
    for i in range(WARM_UP):
        training.step(i)
    training.opt.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.body()
        recorder.drain(wait=True)
        for call in (recorder.close, lambda: Recorder(training.opt, kept)):
            with pytest.raises(RuntimeError, match="expected a call before or after the capture of a CUDA graph, got"):
                call()
    graph.replay()
    recorder.close()
    assert kept.numbers == list(range(1, WARM_UP + 2))


def test_on_another_stream(machine):
    training, recorder, kept = recorded(machine)
    with machine.on_another_stream():
        for i in range(REPLAYS):
            training.step(i)
        recorder.drain()
    recorder.close()
    assert kept.numbers == list(range(1, REPLAYS + 1))


def test_a_checkpoint_is_gone_on_from(machine):
    training, recorder, kept = recorded(machine)
    for i in range(3):
        training.step(i)
    saved = training.opt.state_dict()
    for i in range(3, 6):
        training.step(i)
    training.opt.load_state_dict(saved)
    training.step(3)
    recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5, 6, 4]
