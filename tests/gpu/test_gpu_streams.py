"""A step runs on the current stream and on no other, and on the device of its parameters."""

import pytest
import torch
from machines import Machine, Training
from support.tensors import assert_same, snapshot

#: Some seconds on any GPU, for a test that takes milliseconds.
LONG = 4_000_000_000
STEPS = 8
OPTIONS = {"max_grad_norm": 0.01, "dtypes": (torch.float32, torch.bfloat16)}


def alone(machine, steps=STEPS):
    training = Training(machine, **OPTIONS)
    for i in range(steps):
        training.step(i)
    machine.wait()
    return snapshot(training.opt)


def test_another_stream_gives_the_same_bits(machine):
    training = Training(machine, **OPTIONS)
    with machine.on_another_stream():
        for i in range(STEPS):
            training.step(i)
    machine.wait()
    assert_same(snapshot(training.opt), alone(machine))


def test_one_optimizer_on_changing_streams(machine):
    training = Training(machine, **OPTIONS)
    for i in range(STEPS):
        with machine.on_another_stream():
            training.step(i)
            training.opt.metrics()
    machine.wait()
    assert_same(snapshot(training.opt), alone(machine))


def test_nothing_goes_to_the_default_stream(gpu):
    """The default stream is kept busy: what went there would come too late for what is read here."""
    want = alone(gpu)
    training = Training(gpu, **OPTIONS)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    busy = torch.cuda.Event()
    with torch.cuda.stream(side):
        for i in range(STEPS - 3):  # compiles and loads all that is used below, and takes memory
            training.step(i)
            training.opt.metrics()
            {name: value.cpu() for name, value in snapshot(training.opt).items()}
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    busy.record()
    with torch.cuda.stream(side):
        for i in range(STEPS - 3, STEPS):
            training.step(i)
            training.opt.metrics()
        got = {name: value.cpu() for name, value in snapshot(training.opt).items()}
        still_busy = not busy.query()
    torch.cuda.synchronize()
    assert still_busy, "the step waited for the default stream, or the stream was not kept busy for long enough"
    assert_same(got, {name: value.cpu() for name, value in want.items()})


def test_two_optimizers_on_two_streams(gpu):
    trainings = [Training(gpu, **OPTIONS) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in trainings]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for i in range(STEPS):
        for training, stream in zip(trainings, streams, strict=True):
            with torch.cuda.stream(stream):
                training.step(i)
    torch.cuda.synchronize()
    want = alone(gpu)
    for training in trainings:
        assert_same(snapshot(training.opt), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_a_device_that_is_not_current(gpu):
    want = alone(gpu)
    other = Machine(torch.device("cuda", 1), gpu.backend)
    for current in (0, 1):
        with torch.cuda.device(current):
            got = alone(other)
        assert torch.cuda.current_device() == 0
        torch.cuda.synchronize(1)
        assert_same({name: value.to(gpu.device) for name, value in got.items()}, want)
