"""Within torch.compile a step ends one graph and begins another: the bits of eager steps, nothing compiled anew."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from support.tensors import assert_same, generator, latest, parameter, snapshot

from greedylr_fused import WSD, Cosine, DeviceSchedule, FusedAdamW, GreedyLR

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
    pytest.mark.usefixtures("fresh_compiler"),
]

#: Every observation changes the LR, unless it is at a bound.
RESTLESS = GreedyLR(patience=0, factor=0.9, window_size=3)
#: What the compiler makes of a graph: nothing; one without side effects, on copies; C++.
COMPILERS = ["eager", "aot_eager", "inductor"]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextlib.contextmanager
def no_recompile():
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


class Training:
    """A small model whose whole training step is one function, to be compiled; the same for the same seed."""

    def __init__(self, compiler: str | None = None, **options):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        self.opt = FusedAdamW(self.model.parameters(), **({"lr": 0.01, "schedule": RESTLESS} | options))
        self.step = self._step if compiler is None else torch.compile(self._step, backend=compiler)

    def _step(self, x):
        loss = self.model(x).square().mean()
        loss.backward()
        self.opt.step(loss=loss)
        self.opt.zero_grad()
        return loss.detach()

    def steps(self, begin: int, end: int) -> list[list[float]]:
        """The learning rates after each of these steps."""
        lrs = []
        for i in range(begin, end):
            self.step(torch.randn(6, 4, generator=generator(1000 + i), dtype=torch.float64))
            lrs.append(self.opt.read_lr())
        return lrs


def assert_same_bits(a: Training, b: Training) -> None:
    assert_same(snapshot(a.opt), snapshot(b.opt))
    assert latest(a.opt) == latest(b.opt)


@pytest.mark.parametrize("compiler", COMPILERS[:2])
@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.5},
        {"schedule": GreedyLR(patience=0, base=WSD(40, warmup_steps=10, decay_steps=10)), "amsgrad": True},
        {"schedule": None},
    ],
    ids=["clip", "base_amsgrad", "no_schedule"],
)
def test_a_hundred_compiled_steps_have_the_bits_of_eager_ones(compiler, options):
    eager, ours = Training(**options), Training(compiler, **options)
    with no_recompile():
        lrs = ours.steps(0, 100)
    assert lrs == eager.steps(0, 100)
    assert options.get("schedule", RESTLESS) is None or len({tuple(lr) for lr in lrs}) > 5
    assert_same_bits(ours, eager)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_step_of_given_gradients_is_the_eager_one(compiler):
    """The step alone within what is compiled, also by a compiler that rounds differently in the model."""
    eager, ours = Training(), Training()
    compiled = torch.compile(lambda loss: ours.opt.step(loss=loss), backend=compiler)
    with no_recompile():
        for i in range(20):
            for training, step in ((eager, lambda loss: eager.opt.step(loss=loss)), (ours, compiled)):
                random = generator(i)
                for param in training.model.parameters():
                    param.grad = torch.randn(param.shape, generator=random, dtype=torch.float64)
                step(torch.rand((), generator=random, dtype=torch.float64))
    assert_same_bits(ours, eager)


def test_what_changes_between_steps_counts_and_compiles_nothing_anew():
    eager, ours = Training(max_grad_norm=1.0), Training("aot_eager", max_grad_norm=1.0)
    saved = {}
    changes = [
        lambda opt: opt.set_lr(0.02),
        lambda opt: opt.param_groups[0].update(lr=0.03),
        lambda opt: opt.param_groups[0].update(weight_decay=0.5, betas=(0.5, 0.7)),
        lambda opt: saved.update({id(opt): copy.deepcopy(opt.state_dict())}),
        lambda opt: opt.load_state_dict(saved[id(opt)]),
        lambda opt: opt.add_param_group({"params": [parameter(torch.ones(5), torch.ones(5))], "lr": 0.005}),
    ]
    with no_recompile():
        for i, change in enumerate(changes):
            for training in (eager, ours):
                training.steps(3 * i, 3 * i + 3)
                change(training.opt)
        for training in (eager, ours):
            training.steps(20, 23)
    assert_same_bits(ours, eager)


def observing(training, x, weight):
    for half in x.chunk(2):
        loss = training.model(half).square().mean()
        (loss / 2).backward()
        training.opt.observe(loss, weight)
    training.opt.step()
    training.opt.zero_grad()


def closing(training, x, weight):
    def closure():
        training.opt.zero_grad()
        loss = weight * training.model(x).square().mean()
        loss.backward()
        return loss

    return training.opt.step(closure)


@pytest.mark.parametrize("body", [observing, closing])
def test_observed_micro_batches_and_closures(body):
    eager, ours = Training(), Training()
    compiled = torch.compile(body, backend="aot_eager")
    with no_recompile():
        for i in range(6):
            x, weight = torch.randn(6, 4, generator=generator(i), dtype=torch.float64), torch.tensor(i + 1.0)
            compiled(ours, x, weight)
            body(eager, x, weight)
    assert_same_bits(ours, eager)


def test_a_device_schedule_in_what_is_compiled():
    def build():
        param = torch.nn.Parameter(torch.zeros(3))
        opt = torch.optim.SGD([param], lr=torch.tensor(0.5))
        return param, opt, DeviceSchedule(opt, GreedyLR(patience=0, smooth=False, base=Cosine(20)))

    def body(param, opt, schedule, loss):
        param.grad = torch.ones(3) * loss
        opt.step()
        schedule.step(loss=loss)

    eager, ours = build(), build()
    compiled = torch.compile(body, backend="eager")
    for i in range(10):
        for run, own in ((body, eager), (compiled, ours)):
            run(*own, torch.tensor(float(i % 4)))
    assert torch.equal(eager[0], ours[0]) and eager[2].read_lr() == ours[2].read_lr()
