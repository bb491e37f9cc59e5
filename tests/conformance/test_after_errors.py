"""Whatever raises in `step()` leaves an optimizer that goes on as if that call had not been made."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from support.tensors import assert_same, parameter, snapshot

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.step import engine
from greedylr_fused.step.mirror import Mirror

LOSSES = [3.0, 2.0, 2.5, 1.0, 4.0]


class Run:
    """A small run with everything on, whose gradients and losses depend on the number of the step alone."""

    def __init__(self, device, backend):
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.params = [parameter(torch.randn(n, generator=generator).to(device)) for n in (5, 40, 7)]
        schedule = GreedyLR(patience=0, factor=0.5, window_size=3)
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.02}]
        self.opt = FusedAdamW(groups, lr=0.1, schedule=schedule, max_grad_norm=1.0, backend=backend)
        self.loss = None
        self.closure = None

    def fill(self, number):
        generator = torch.Generator().manual_seed(10 + number)
        for param in self.params:
            param.grad = torch.randn(param.shape, generator=generator).to(param)
        self.loss, self.closure = torch.tensor(LOSSES[number], device=self.device), None

    def step(self):
        self.opt.step(self.closure, loss=self.loss)


@contextlib.contextmanager
def patched(target, name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


def failing(error):
    def fail(*_, **__):
        raise error("of the test")

    return fail


@contextlib.contextmanager
def gradient(run, value):
    run.params[1].grad = value
    yield


@contextlib.contextmanager
def replaced(place, key, value):
    """An entry of a dictionary, put back afterwards."""
    before = place[key]
    place[key] = value
    yield
    place[key] = before


@contextlib.contextmanager
def attribute(run, name, value):
    setattr(run, name, value)
    yield


def closure_that_observes(run):
    def closure():
        run.opt.observe(100.0)
        raise ValueError("of the test")

    return closure


@contextlib.contextmanager
def hooked(register):
    handle = register(failing(ValueError))
    yield
    handle.remove()


@contextlib.contextmanager
def without_group(run):
    groups, run.opt.param_groups = run.opt.param_groups, []
    yield
    run.opt.param_groups = groups


@contextlib.contextmanager
def with_group(run):
    run.opt.param_groups.append({**run.opt.param_groups[0], "params": [], "eps": -1.0})
    yield
    run.opt.param_groups.pop()


@contextlib.contextmanager
def elsewhere(run):
    """A parameter that has no memory, as after to_empty() gone wrong."""
    run.opt.param_groups[0]["params"].append(torch.nn.Parameter(torch.zeros(2, device="meta")))
    run.opt.param_groups[0]["params"][-1].grad = torch.zeros(2, device="meta")
    yield
    run.opt.param_groups[0]["params"].pop()


def state(run):
    return run.opt.state[run.params[1]]


#: What makes a step raise before anything is written.
BEFORE = {
    "sparse gradient": lambda run: gradient(run, torch.zeros(40, device=run.device).to_sparse()),
    "gradient of another shape": lambda run: gradient_of_another_shape(run),
    "no loss": lambda run: attribute(run, "loss", None),
    "a loss that is none": lambda run: attribute(run, "loss", "low"),
    "loss of two elements": lambda run: attribute(run, "loss", torch.ones(2, device=run.device)),
    "closure that observes and raises": lambda run: both(
        attribute(run, "loss", None), attribute(run, "closure", closure_that_observes(run))
    ),
    "loss given twice": lambda run: attribute(run, "closure", lambda: torch.tensor(1.0)),
    "negative LR": lambda run: lr(run, -1.0),
    "LR out of bounds": lambda run: lr(run, 50.0),
    "LR that is no number": lambda run: lr(run, "high"),
    "no groups": without_group,
    "a bad group": with_group,
    "a parameter elsewhere": elsewhere,
    "pre-hook": lambda run: hooked(run.opt.register_step_pre_hook),
    "table": lambda run: unbuilt(run, patched(engine, "TensorTable", failing(MemoryError))),
    "watch": lambda run: unbuilt(run, patched(engine, "watching", failing(KeyboardInterrupt))),
    "measure": lambda run: in_backend(run, "measure", RuntimeError),
    "interrupt before the update": lambda run: in_backend(run, "update", KeyboardInterrupt),
}
#: The same, where there is state.
LATER = {
    "moment of another shape": lambda run: replaced(state(run), "exp_avg", torch.zeros(3, device=run.device)),
    "moment of another dtype": lambda run: replaced(
        state(run), "exp_avg_sq", torch.zeros(40, dtype=torch.float64, device=run.device)
    ),
    "moment without memory": lambda run: replaced(state(run), "exp_avg", torch.zeros(40, device="meta")),
    "moment that is gone": lambda run: lost(run, "exp_avg"),
    "count that is gone": lambda run: lost(run, "step"),
}
#: What raises when all is done.
AFTER = {
    "post-hook": lambda run: hooked(run.opt.register_step_post_hook),
    "snapshot": lambda run: patched(Mirror, "update", failing(RuntimeError)),
    "listener": lambda run: listening(run),
}


@contextlib.contextmanager
def gradient_of_another_shape(run):
    param = run.params[1]
    data = param.data
    param.data = data[:3].clone()
    param.grad = torch.zeros(3, device=run.device)
    param.data = data
    yield


@contextlib.contextmanager
def both(*managers):
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


@contextlib.contextmanager
def lr(run, value):
    with replaced(run.opt.param_groups[1], "lr", value):
        yield


@contextlib.contextmanager
def unbuilt(run, manager):
    """Where a table is built anew."""
    run.opt._engine.discard()
    with manager:
        yield


@contextlib.contextmanager
def in_backend(run, name, error):
    with patched(run.opt._engine.choice.backend, name, failing(error)):
        yield


@contextlib.contextmanager
def lost(run, name):
    own = state(run)
    kept = dict(own)
    del own[name]
    yield
    own.clear()
    own.update(kept)


@contextlib.contextmanager
def listening(run):
    listener = SimpleNamespace(after_step=failing(ValueError), after_replay=lambda: None, after_restart=lambda: None)
    run.opt._listeners.append(listener)
    yield
    run.opt._listeners.remove(listener)


def compared(run, twin):
    assert run.opt.metrics() == twin.opt.metrics() and run.opt.read_lr() == twin.opt.read_lr()
    assert_same(snapshot(run.opt), snapshot(twin.opt))


CASES = [(name, begun) for name in BEFORE for begun in (0, 2)] + [(name, 2) for name in LATER]


@pytest.mark.parametrize("name, begun", CASES)
def test_a_step_that_raised_before_it_wrote_was_none(device, backend, name, begun):
    run, twin = Run(device, backend), Run(device, backend)
    for number in range(begun):
        for each in (run, twin):
            each.fill(number)
            each.step()
    for _ in range(2):
        run.fill(begun)
        with (BEFORE | LATER)[name](run), pytest.raises((Exception, KeyboardInterrupt)):
            run.step()
    for number in range(begun, begun + 2):
        for each in (run, twin):
            each.fill(number)
            each.step()
        compared(run, twin)


@pytest.mark.parametrize("name", AFTER)
def test_a_step_that_raised_when_all_was_done_was_one(device, backend, name):
    run, twin = Run(device, backend), Run(device, backend)
    for number in range(4):
        for each in (run, twin):
            each.fill(number)
            if each is run and number in (0, 2):
                with AFTER[name](run), pytest.raises((ValueError, RuntimeError), match="of the test"):
                    run.step()
            else:
                each.step()
    compared(run, twin)
