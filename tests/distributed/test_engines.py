"""Every engine of PyTorch trains as one process does on the whole batch, on 2, 3 and 4 ranks."""

import contextlib
import functools
from dataclasses import dataclass

import pytest
import torch
from engines import ENGINES
from support.foreign_warnings import FSDP2_VIEW
from support.ranks import Ranks
from training import BATCH, SCHEDULE, STEPS, alone, train

pytestmark = [
    FSDP2_VIEW,
    pytest.mark.filterwarnings("ignore:The `NO_SHARD` sharding strategy is deprecated"),
]


@dataclass(frozen=True)
class Alone:
    """What one process did, and how much the order in which it adds up the batch changes that."""

    steps: list
    parameters: dict[str, torch.Tensor]
    norms: list[float]
    tolerance: dict[str, float]
    """An engine does the same sums in yet other orders, and divides what is one sum here; it may differ by this small
    multiple.
    """


@pytest.fixture(scope="module")
def single():
    steps, parameters, norms = alone()
    tolerance = {"loss": 0.0, "norm": 0.0, "parameters": 0.0}
    for seed in range(4):
        order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed)).tolist()
        others, other_parameters, _ = alone(order)
        for name, value in differences(others, other_parameters, steps, parameters).items():
            tolerance[name] = max(tolerance[name], 16 * value)
    return Alone(steps, parameters, norms, tolerance)


def differences(steps, parameters, wanted_steps, wanted_parameters):
    """The largest, of losses and norms relative to each."""
    pairs = list(zip(steps, wanted_steps, strict=True))
    return {
        "loss": max(abs(a.loss - b.loss) / b.loss for a, b in pairs),
        "norm": max(abs(a.grad_norm - b.grad_norm) / b.grad_norm for a, b in pairs),
        "parameters": max((parameters[name] - wanted).abs().max().item() for name, wanted in wanted_parameters.items()),
    }


def test_one_process_decides_with_a_margin(single):
    """So that rounding changes no decision, and the LR can be compared to the bit."""
    steps = single.steps
    for before, after in zip(steps, steps[1:], strict=False):
        bar = before.best * (1 - SCHEDULE.threshold)
        assert abs(after.smoothed_loss - bar) > 1e6 * single.tolerance["loss"] * bar
    lrs = [step.lr[0] for step in steps]
    assert len(lrs) == STEPS and max(lrs) > 2 * lrs[0] and min(lrs) < lrs[0] / 2, "it raises and cuts"
    assert 5 < sum(step.grad_norm > 1 for step in steps) < STEPS - 5, "it clips in some steps"


def test_one_process_measures_the_norm_of_torch(single):
    for step, norm in zip(single.steps, single.norms, strict=True):
        assert step.grad_norm == pytest.approx(norm, rel=single.tolerance["norm"], abs=0)


@pytest.fixture(scope="module")
def ranks_of():
    """`ranks_of(world)`: that many processes, which stay."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda world: stack.enter_context(Ranks(world)))


def trained(rank, engine, world):
    net, opt, arguments, parameters = engine(rank, world)
    return train(net, opt, **arguments), parameters(net)


def cases():
    """Each engine on as many ranks as it is to be tried on; the fewest in every run of the tests."""
    seen = set()
    for world, engines in sorted(ENGINES.items()):
        for engine in engines:
            marks = pytest.mark.exhaustive if engine in seen else ()
            yield pytest.param(world, engine, id=f"{world} ranks-{engine.__name__}", marks=marks)
            seen.add(engine)


@pytest.mark.parametrize("world, engine", list(cases()))
def test_an_engine_trains_as_one_process(ranks_of, single, world, engine):
    """It decides the same; losses, norms before clipping and all parameters are the same but for rounding."""
    (steps, parameters), *others = ranks_of(world)(trained, engine, world)
    for other_steps, other_parameters in others:
        assert other_steps == steps
        assert all(torch.equal(other_parameters[key], parameters[key]) for key in parameters), "not the same bits"
    wanted = [(step.step, step.lr[0].hex(), step.skipped) for step in single.steps]
    assert [(step.step, step.lr[0].hex(), step.skipped) for step in steps] == wanted
    assert parameters.keys() == single.parameters.keys()
    found = differences(steps, parameters, single.steps, single.parameters)
    assert all(value <= single.tolerance[key] for key, value in found.items()), found
