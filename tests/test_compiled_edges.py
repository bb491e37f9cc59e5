"""A step within torch.compile where something changes between steps, or goes wrong."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from compiled_training import COMPILERS, TRACES_BACKWARD, Training, fresh_compiler, no_recompile
from support import assert_same, latest, parameter, snapshot

__all__ = ["fresh_compiler"]

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"), pytest.mark.usefixtures("fresh_compiler")]


@pytest.mark.parametrize("kind", [int, float, torch.tensor])
def test_weights_that_change_compile_nothing_anew(kind):
    eager, ours = Training(), Training()
    frames = torch._dynamo.testing.CompileCounter()

    def body(training, loss, weight):
        training.opt.observe(loss, weight)
        training.opt.observe(2.0, weight)
        training.opt.step()

    compiled = torch.compile(lambda loss, weight: body(ours, loss, weight), backend=frames, fullgraph=True)
    counts = []
    for i in range(12):
        compiled(ours.feed(i), kind(i + 3))
        body(eager, eager.feed(i), kind(i + 3))
        counts.append(frames.frame_count)
    assert counts[-1] <= 2 and counts[2] == counts[-1]  # a number becomes a variable when it first changes
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


@pytest.mark.skipif(not TRACES_BACKWARD, reason="this version of torch cannot trace backward()")
def test_a_closure_in_the_graph_that_observes_is_not_counted_again():
    def body(training):
        def closure():
            training.opt.zero_grad()
            loss = sum(param.square().sum() for param in training.params[:-1])
            loss.backward()
            training.opt.observe(loss, weight=2.0)
            return loss * 100

        return training.opt.step(closure).detach()

    eager, ours = Training(), Training()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(lambda: body(ours), backend="aot_eager", fullgraph=True)
        for _ in range(4):
            assert torch.equal(compiled(), body(eager))
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert latest(ours.opt) == latest(eager.opt)


def test_cleared_gradients_are_those_of_added_groups_too():
    training = Training()
    clear = torch.compile(lambda: training.opt.zero_grad(), backend="eager", fullgraph=True)
    training.feed(0)
    clear()
    added = parameter(torch.ones(5))
    training.opt.add_param_group({"params": [added]})
    training.feed(1)
    added.grad = torch.ones(5)
    clear()
    assert all(param.grad is None for param in [*training.params, added])


def test_parameters_that_were_replaced_by_hand_are_compiled_anew():
    training = Training("eager")
    training.steps(0, 2)
    new = parameter(torch.ones(4), torch.ones(4))
    training.opt.param_groups[0]["params"] = [new]
    with pytest.raises(RuntimeError, match="parameters that have been replaced.*call the compiled function again"):
        training.steps(2, 3)
    training.steps(3, 4)
    assert training.opt.state[new]["step"] == 1


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
        torch.library.opcheck(
            observe,
            (opt._name, loss, torch.tensor(2.0, dtype=torch.float64), True, opt._control.vector),
            test_utils=checks,
        )
    written = [argument.name for argument in step._schema.arguments if argument.is_write]
    assert written == ["params", "moments", "control"]
    if hasattr(torch.Tag, "cudagraph_unsafe"):
        assert torch.Tag.cudagraph_unsafe in step.tags and torch.Tag.cudagraph_unsafe in observe.tags
