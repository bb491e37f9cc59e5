"""A step within torch.compile is the eager step: no break in the graph, no recompilation, the same bits."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import torch
from support import assert_same, generator, latest, parameter, snapshot

from greedylr_fused import WSD, FusedAdamW, GreedyLR

#: Every observation changes the LR, unless it is at a bound.
RESTLESS = GreedyLR(patience=0, factor=0.9, window_size=3)
#: What the compiler makes of the graph: nothing; one without side effects, on copies; C++.
COMPILERS = ["eager", "aot_eager", "inductor"]
STEPS = 100
TRACES_BACKWARD = hasattr(torch._dynamo.config, "trace_autograd_ops")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with torch.enable_grad():  # an error within a compiled no_grad leaves gradients disabled (torch 2.13)
        yield
    torch._dynamo.reset()


@contextlib.contextmanager
def no_recompile():
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


class Training:
    """Parameters of several shapes and a loss over them, the same for the same seed."""

    def __init__(self, compiler: str | None = None, **options):
        self.params = [parameter(torch.randn(n, generator=generator(n))) for n in (7, 64, 1, 0)]
        self.params.append(parameter(torch.ones(3)))  # never has a gradient
        self.opt = FusedAdamW(self.params, **({"lr": 0.01, "schedule": RESTLESS} | options))
        self.compiler = compiler
        self.compiled = None

    def feed(self, i: int) -> torch.Tensor:
        """Gradients of step i, new ones each time, and its loss."""
        random = generator(1000 + i)
        for param in self.params[:-1]:
            param.grad = torch.randn(param.shape, generator=random)
        return torch.rand((), generator=random)

    def steps(self, begin: int, end: int, body=None) -> list[list[float]]:
        body = body or (lambda loss: self.opt.step(loss=loss))
        if self.compiler is not None and self.compiled is None:
            self.compiled = torch.compile(body, backend=self.compiler, fullgraph=True)
        rates = []
        for i in range(begin, end):
            (self.compiled or body)(self.feed(i))
            rates.append(self.opt.last_lr())
        return rates


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.5},
        {"schedule": GreedyLR(patience=0, base=WSD(40, warmup_steps=10, decay_steps=10)), "amsgrad": True},
        {"schedule": None},
    ],
    ids=["clip", "base_amsgrad", "no_schedule"],
)
def test_a_compiled_step_is_the_eager_one(compiler, options):
    eager, ours = Training(**options), Training(compiler, **options)
    with no_recompile():
        rates = ours.steps(0, STEPS)
    assert rates == eager.steps(0, STEPS)
    assert options.get("schedule", RESTLESS) is None or len({tuple(lr) for lr in rates}) > 5
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert latest(ours.opt) == latest(eager.opt) and latest(ours.opt).step == STEPS
    assert ours.params[-1] not in ours.opt.state
    assert ours.opt.param_groups[0]["lr"] == eager.opt.param_groups[0]["lr"]


def whole(compiler: str | None, steps: int):
    """Model and optimizer after whole training steps: forward, backward, observe, step, zero_grad in one graph."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    opt = FusedAdamW(model.parameters(), lr=0.01, schedule=RESTLESS, max_grad_norm=0.5)

    def body(x, weight):
        for half in x.chunk(2):
            loss = model(half).square().mean()
            (loss / 2).backward()
            opt.observe(loss, weight)
        opt.step()
        opt.zero_grad()
        return loss.detach()

    run = body if compiler is None else torch.compile(body, backend=compiler, fullgraph=True)
    random = generator(5)
    for _ in range(steps):
        x, weight = torch.randn(6, 4, generator=random, dtype=torch.float64), torch.rand((), generator=random)
        run(x, weight)
    return model, opt


@pytest.mark.skipif(not TRACES_BACKWARD, reason="this version of torch cannot trace backward()")
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_whole_training_step_in_one_graph(compiler):
    with no_recompile(), torch._dynamo.config.patch(trace_autograd_ops=True):
        model, opt = whole(compiler, STEPS)
    expected, eager = whole(None, STEPS)
    assert_same(snapshot(opt), snapshot(eager))
    assert all(param.grad is None for param in model.parameters())
    assert latest(opt) == latest(eager)


@pytest.mark.skipif(not TRACES_BACKWARD, reason="this version of torch cannot trace backward()")
def test_a_closure_in_the_graph():
    def body(training):
        def closure():
            training.opt.zero_grad()
            loss = sum(param.square().sum() for param in training.params[:-1])
            loss.backward()
            return loss

        return training.opt.step(closure).detach()

    eager, ours = Training(), Training()
    with no_recompile(), torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(lambda: body(ours), backend="aot_eager", fullgraph=True)
        for _ in range(5):
            assert torch.equal(compiled(), body(eager))
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_the_graph_does_before_and_after_sees_the_step_where_it_is(compiler):
    """Values from before the step are kept, those after it are new: parameters, moments, and what was changed first."""

    def body(training, loss):
        param = training.params[1]
        old = param.detach().clone()
        with torch.no_grad():
            param.mul_(0.5)
        training.opt.step(loss=loss)
        moment = training.opt._traced.moments[1][0] if training.compiler else training.opt.state[param]["exp_avg"]
        return old + 1, param.detach() + 1, moment + 1

    eager, ours = Training(), Training(compiler)
    compiled = torch.compile(lambda loss: body(ours, loss), backend=compiler, fullgraph=True)
    with no_recompile():
        for i in range(4):
            for a, b in zip(compiled(ours.feed(i)), body(eager, eager.feed(i)), strict=True):
                assert torch.equal(a, b)
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_what_the_host_writes_between_steps_counts(compiler):
    eager, ours = Training(max_grad_norm=1.0), Training(compiler, max_grad_norm=1.0)
    with no_recompile():
        for begin, change in (
            (0, lambda opt: opt.set_lr(0.02)),
            (3, lambda opt: opt.param_groups[0].update(lr=0.03)),
            (6, lambda opt: opt.param_groups[0].update(weight_decay=0.5, betas=(0.5, 0.7))),
            (9, lambda opt: opt.observe(0.0, weight=0.0)),
        ):
            for training in (eager, ours):
                training.steps(begin, begin + 3)
                change(training.opt)
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


@pytest.mark.parametrize("compiler", COMPILERS[:2])
def test_a_loaded_checkpoint_and_a_new_group(compiler):
    """Both replace what the graph was traced with: it is traced again, and goes on right."""
    eager, ours = Training(), Training(compiler)
    for training in (eager, ours):
        training.steps(0, 4)
        saved = copy.deepcopy(training.opt.state_dict())
        training.steps(4, 6)
        training.opt.load_state_dict(saved)
        training.steps(6, 9)
        training.opt.add_param_group({"params": [parameter(torch.ones(5), torch.ones(5))], "lr": 0.005})
        training.steps(9, 12)
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_moments_that_were_replaced_by_hand():
    eager, ours = Training(), Training("aot_eager")
    for training in (eager, ours):
        training.steps(0, 3)
        own = training.opt.state[training.params[1]]
        own["exp_avg"] = own["exp_avg"] * 2
        training.steps(3, 6)
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_two_optimizers_in_one_graph():
    pairs = [[Training(lr=lr) for lr in (0.01, 0.02)] for _ in range(2)]

    def body(trainings, loss):
        for training in trainings:
            training.opt.step(loss=loss)

    compiled = torch.compile(lambda loss: body(pairs[0], loss), backend="aot_eager", fullgraph=True)
    with no_recompile():
        for i in range(4):
            for trainings, run in zip(pairs, (compiled, lambda loss: body(pairs[1], loss)), strict=True):
                losses = [training.feed(i) for training in trainings]
                run(losses[0])
    for ours, eager in zip(*pairs, strict=True):
        assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_gradients_outside_of_the_graph_stay_outside():
    """A parameter whose gradient the graph has cleared is not stepped with the one it had before."""
    training = Training("eager")
    left_out = training.params[0]

    def body(loss):
        left_out.grad = None
        training.opt.step(loss=loss)

    before = left_out.detach().clone()
    training.steps(0, 2, body)
    assert torch.equal(left_out, before) and left_out not in training.opt.state


@pytest.mark.parametrize("compiler", COMPILERS[:2])
def test_mistakes_say_the_same_as_eager_ones(compiler):
    training = Training(compiler)
    with pytest.raises(RuntimeError, match="got no loss.*three ways"):
        training.steps(0, 1, lambda loss: training.opt.step())
    other = Training(compiler)
    other.opt.observe(1.0)
    with pytest.raises(ValueError, match="more than once"):
        other.steps(0, 1)
    assert int(other.opt._control.slot("step")) == 0


def test_a_copied_optimizer_steps_itself():
    training = Training()
    training.steps(0, 2)
    other = copy.deepcopy(training.opt)
    assert other._name != training.opt._name
    for param in other.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    before = snapshot(training.opt)
    torch.compile(lambda: other.step(loss=torch.tensor(1.0)), backend="eager", fullgraph=True)()
    assert_same(snapshot(training.opt), before)
    assert latest(other).step == 3


def test_an_optimizer_that_is_gone():
    training = Training("eager")
    training.steps(0, 1)
    name, vector = training.opt._name, training.opt._control.vector
    del training
    torch._dynamo.reset()
    gc.collect()
    with pytest.raises(RuntimeError, match=f"compiled step of {name}, which no longer exists"):
        torch.ops.greedylr_fused.step(name, [], [], [], [], vector, None)


def test_the_operators_declare_what_they_change():
    """torch's own checks of a custom operator; and its step is kept out of CUDA graphs that the compiler captures."""
    training = Training()
    training.steps(0, 1)
    torch.compile(lambda: training.opt.step(loss=torch.tensor(1.0)), backend="eager", fullgraph=True)()
    opt, which = training.opt, [0, 1]
    params = [training.params[i] for i in which]
    grads, moments = [param.grad for param in params], [m for i in which for m in opt._traced.moments[i]]
    step, observe = torch.ops.greedylr_fused.step.default, torch.ops.greedylr_fused.observe.default
    checks = ("test_schema", "test_faketensor")
    with torch.no_grad():
        loss = torch.tensor(1.0)
        torch.library.opcheck(
            step, (opt._name, which, params, grads, moments, opt._control.vector, loss), test_utils=checks
        )
        torch.library.opcheck(observe, (opt._name, loss, None, 2.0, opt._control.vector), test_utils=checks)
    written = [argument.name for argument in step._schema.arguments if argument.is_write]
    assert written == ["params", "moments", "control"]
    if hasattr(torch.Tag, "cudagraph_unsafe"):
        assert torch.Tag.cudagraph_unsafe in step.tags and torch.Tag.cudagraph_unsafe in observe.tags
