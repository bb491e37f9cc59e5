"""What the tests of telemetry share: small optimizers to step, and a sink that keeps the steps as they come."""

import json

import torch

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.telemetry import Recorder

#: Every observation changes the LR, unless it is at a bound.
RESTLESS = GreedyLR(patience=0, factor=0.8, smooth=False)


class Kept:
    """Stands in for a file: the steps that would be written."""

    def __init__(self):
        self.steps, self._waiting = [], []

    def put(self, step):
        self._waiting.append(step)

    def flush(self):
        self.steps += self._waiting
        self._waiting = []

    @property
    def numbers(self):
        return [step.number for step in self.steps]


def optimizer(**options):
    """Two groups of one parameter; gradients are measured, and non-finite ones skipped."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.02}]
    return FusedAdamW(groups, **({"lr": 0.01, "schedule": RESTLESS, "max_grad_norm": 1.0} | options))


def give_gradients(opt, *, skip=False):
    """Random ones, or one NaN in them."""
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape)
    if skip:
        param.grad.view(-1)[0] = torch.nan


def step(opt, loss=1.0, *, skip=False):
    """One step, with gradients of its own."""
    give_gradients(opt, skip=skip)
    opt.step(loss=loss)


def step_unheard(opt, count):
    """Steps of which no listener is told, as replays of a graph that was captured without a recorder."""
    listeners, opt._listeners = opt._listeners, []
    for _ in range(count):
        step(opt)
    opt._listeners = listeners


def recorded(opt, *sinks, **options):
    """A recorder and what it hands over."""
    recorder = Recorder(opt, *(sinks or [lambda metrics, step: None]), **options)
    kept = Kept()
    recorder._files.append(kept)
    return recorder, kept


class Raw:
    """A captured graph: writes the rows of a recorder, which is told nothing."""

    def __init__(self, recorder):
        self._recorder = recorder

    def after_step(self):
        self._recorder._ring.write()

    def after_replay(self):
        """Nothing is recorded of it."""

    def after_restart(self):
        self._recorder.after_restart()


def replay(opt, recorder, *, told=False, **options):
    """A step as the replay of a graph makes it."""
    before, opt._listeners = opt._listeners, [Raw(recorder)]
    try:
        step(opt, **options)
    finally:
        opt._listeners = before
    if told:
        recorder.after_replay()


def numbers(path):
    """The steps that have a line in a file, in its order."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]
