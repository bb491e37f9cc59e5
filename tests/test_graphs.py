"""A captured training step: what it checks and does on the host, with a stand-in for the graph. tests/gpu has the real.

The stand-in behaves as a graph does for the host: a capture changes no value, and a replay runs the step on the memory
of the capture, gradients included.
"""

from __future__ import annotations

import pytest
import torch
from support import assert_same, generator, latest, parameter, snapshot
from torch.utils import _pytree as pytree

from greedylr_fused import FusedAdamW, GreedyLR, graph_checks, graphs
from greedylr_fused.graphs import CapturedStep

RESTLESS = GreedyLR(patience=0, factor=0.8, window_size=3)


class Body:
    """A training step on a batch, which counts how often Python ran it."""

    def __init__(self, **options):
        random = generator(3)
        self.params = [parameter(torch.randn(4, 3, generator=random)), parameter(torch.randn(4, generator=random))]
        self.opt = FusedAdamW(self.params, **({"lr": 0.01, "schedule": RESTLESS, "max_grad_norm": 1.0} | options))
        self.runs = 0

    def __call__(self, x, *, scale=1.0):
        self.runs += 1
        weight, bias = self.params
        loss = (torch.nn.functional.linear(x["inputs"], weight, bias) * scale).square().mean()
        loss.backward()
        self.opt.step(loss=loss)
        return loss.detach(), {"batch": len(x["inputs"])}


class StandIn:
    """In the place of `graphs._Graph`."""

    optimizer: FusedAdamW

    def __init__(self, pool):
        self.pool = pool

    def tensors(self):
        states = [tensor for own in self.optimizer.state.values() for tensor in own.values()]
        return [*(p for group in self.optimizer.param_groups for p in group["params"]), *states]

    def capture(self, run):
        self.run = run
        control = self.optimizer._control.vector
        before = [(tensor, tensor.detach().clone()) for tensor in (*self.tensors(), control)]
        self.result = run()
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)
        self.grads = {param: param.grad for group in self.optimizer.param_groups for param in group["params"]}
        return self.result

    def replay(self):
        found = {param: param.grad for param in self.grads}
        self.optimizer.zero_grad = lambda: None  # the graph's memory is written to again
        for param, grad in self.grads.items():
            param.grad = None if grad is None else grad.zero_()
        result = self.run()
        del self.optimizer.zero_grad
        for param, grad in found.items():
            param.grad = grad
        for own, new in zip(*map(pytree.tree_leaves, (self.result, result)), strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(new)


class NoStream:
    """In the place of `graphs._SideStream`."""

    def __init__(self, device):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def keep(self, result):
        pass


@pytest.fixture
def standing_in(monkeypatch):
    monkeypatch.setattr(graph_checks, "_DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "_Graph", StandIn)
    monkeypatch.setattr(graphs, "_SideStream", NoStream)


@pytest.fixture
def twins(standing_in):
    """An eager training, and one whose next step is a replay."""
    eager, ours = Body(), Body()
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=2)
    for i in range(3):
        step(batch(i))
        stepped(eager, batch(i))
    assert step.captured and ours.runs == 4  # two eager ones, the capture, its first replay
    return eager, ours, step


def batch(i, rows=5):
    return {"inputs": torch.randn(rows, 3, generator=generator(100 + i))}


def stepped(body, inputs, **options):
    body.opt.zero_grad()
    return body(inputs, **options)


def test_calls_are_training_steps_from_the_first_one_on(twins):
    eager, ours, step = twins
    for i in range(3, 9):
        loss, rest = step(batch(i))
        expected, _ = stepped(eager, batch(i))
        assert torch.equal(loss, expected) and rest == {"batch": 5}
        assert ours.opt.last_lr() == eager.opt.last_lr()
        assert ours.opt.param_groups[0]["lr"] == eager.opt.param_groups[0]["lr"]
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert latest(ours.opt) == latest(eager.opt)


def test_the_caller_s_batch_is_left_alone_and_results_are_overwritten(twins):
    _, _, step = twins
    given = batch(7)
    first, _ = step(given)
    value = first.clone()
    assert torch.equal(given["inputs"], batch(7)["inputs"])
    second, _ = step(batch(8))
    assert first is second and not torch.equal(first, value)


def test_an_lr_that_is_written_reaches_the_next_replay(twins):
    eager, ours, step = twins
    for i, write in enumerate(
        (lambda opt: opt.param_groups[0].update(lr=0.05), lambda opt: opt.set_lr(0.002), lambda opt: None)
    ):
        write(ours.opt)
        write(eager.opt)
        step(batch(10 + i))
        stepped(eager, batch(10 + i))
        assert ours.opt.last_lr() == eager.opt.last_lr()
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_listeners_are_told_of_replays_and_autograd_of_changes(twins):
    _, ours, step = twins
    told = []

    class Listener:
        def stepped(self):
            pass

        def replayed(self):
            told.append(ours.opt.metrics().step)

        def restarted(self):
            pass

    ours.opt._listeners.append(Listener())
    version = ours.params[0]._version
    step(batch(4))
    step(batch(5))
    assert told == [4, 5] and ours.params[0]._version > version


@pytest.mark.parametrize(
    ("name", "value"), [("weight_decay", 0.5), ("betas", (0.8, 0.9)), ("eps", 1e-6), ("maximize", True)]
)
def test_changed_hyper_parameters_are_refused(twins, name, value):
    _, ours, step = twins
    before = snapshot(ours.opt)
    ours.opt.param_groups[0][name] = value
    message = rf"since the capture {name} of parameter group 0 changed from .* to .*call reset\(\): the next call is"
    with pytest.raises(RuntimeError, match=message):
        step(batch(4))
    assert_same(snapshot(ours.opt), before)


REPLACED = {
    "loaded": lambda body: body.opt.load_state_dict(body.opt.state_dict()),
    "group": lambda body: body.opt.add_param_group({"params": [parameter(torch.ones(2))]}),
    "amsgrad": lambda body: body.opt.param_groups[0].update(amsgrad=True),
    "memory": lambda body: setattr(body.params[0], "data", body.params[0].data.clone()),
    "state": lambda body: body.opt.state[body.params[0]].update(exp_avg=torch.zeros(4, 3)),
    "param": lambda body: body.opt.param_groups[0].update(params=[body.params[0]]),
}


@pytest.mark.parametrize("change", REPLACED)
def test_what_was_replaced_is_refused(twins, change):
    _, ours, step = twins
    REPLACED[change](ours)
    with pytest.raises(RuntimeError, match=r"since the capture .*(were replaced|amsgrad of).*call reset\(\)"):
        step(batch(4))


def test_moved_gradients_are_refused_and_cleared_ones_are_not(twins):
    eager, ours, step = twins
    ours.opt.zero_grad()
    step(batch(4))
    ours.params[1].grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"gradient of a parameter of shape \(4,\) was replaced.*opt.zero_grad"):
        step(batch(5))
    ours.opt.zero_grad()
    step(batch(5))
    for i in (4, 5):
        stepped(eager, batch(i))
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_after_reset_it_goes_on_with_what_has_changed(twins):
    eager, ours, step = twins
    for opt in (ours.opt, eager.opt):
        opt.param_groups[0]["weight_decay"] = 0.5
    step.reset()
    assert not step.captured
    for i in range(4, 9):
        step(batch(i, rows=7))
        stepped(eager, batch(i, rows=7))
    assert step.captured
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_inputs_of_another_kind_are_refused(twins):
    _, _, step = twins
    with pytest.raises(ValueError, match=r"got a torch.float32 tensor of shape \(2, 3\) as input number 0.*\(5, 3\)"):
        step(batch(4, rows=2))
    with pytest.raises(ValueError, match=r"float64 tensor"):
        step({"inputs": batch(4)["inputs"].double()})
    with pytest.raises(ValueError, match="got inputs nested as"):
        step(batch(4), scale=2.0)
    with pytest.raises(ValueError, match="got 'text' as input number 0"):
        step({"inputs": "text"})


def test_a_constant_stays_what_it_was(standing_in):
    ours = Body()
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt)
    step(batch(0), scale=2.0)
    with pytest.raises(ValueError, match="got 3.0 as input number 1, allowed is 2.0.*pass what changes as a tensor"):
        step(batch(1), scale=3.0)


def test_a_body_that_steps_something_else(standing_in):
    ours, other = Body(), Body()
    StandIn.optimizer = other.opt
    other.opt.step(loss=1.0)
    step = CapturedStep(ours, other.opt, warmup=1)
    step(batch(0))
    with pytest.raises(RuntimeError, match="does not step the optimizer it was given"):
        step(batch(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda body: (body, torch.optim.AdamW(body.params)), TypeError, "got a AdamW as optimizer"),
        (lambda body: (body.opt, body.opt), TypeError, "got a FusedAdamW as body"),
        (lambda body: (body, body.opt, 0), ValueError, "got warmup=0, allowed is an integer >= 1"),
        (lambda body: (body, body.opt, 3), RuntimeError, "got parameters on cpu, allowed is a GPU.*call the body"),
    ],
)
def test_refused_at_construction(arguments, error, message):
    body, opt, *warmup = arguments(Body())
    with pytest.raises(error, match=message):
        CapturedStep(body, opt, **({"warmup": warmup[0]} if warmup else {}))
