"""A step within torch.compile is the eager step: no break in the graph, no recompilation, the same bits."""

from __future__ import annotations

import copy

import pytest
import torch
from compiled_training import COMPILERS, RESTLESS, STEPS, TRACES_BACKWARD, Training, fresh_compiler, no_recompile
from support import assert_same, generator, latest, parameter, snapshot

from greedylr_fused import WSD, FusedAdamW, GreedyLR

__all__ = ["fresh_compiler"]

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"), pytest.mark.usefixtures("fresh_compiler")]


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
