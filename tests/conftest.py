"""Which backends the conformance suite runs, where, and how many random steps it may take.

pytest tests -n logical --dist worksteal             on all cores, as `make test` does
pytest tests                                          reference, cpu, and cuda emulated on the CPU; triton's interpreter
                                                      in its own process
pytest tests --exhaustive                             all combinations and more random steps, as `make test-all` does
pytest tests/conformance --device cuda                reference, cuda, triton
pytest tests/conformance --backend triton             triton, interpreted (with TRITON_INTERPRET=1) on CPU tensors
pytest tests/conformance --backend triton --device cuda    triton, compiled
pytest tests/conformance -k random_traces --control-steps 100000 --timeout 0    as many for the slow backends, too
"""

import gc
import importlib.util
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("support")

from support.tensors import Budget  # noqa: E402

EXHAUSTIVE = Budget(
    control_steps={"cpu": 100_000, "cuda": 40_000, "reference": 7_000, "triton": 20_000},
    trajectory=60,
    rounds=3,
    elements=150_000,
)
NATIVE = replace(EXHAUSTIVE, control_steps={"cpu": 30_000, "cuda": 10_000, "reference": 2_000, "triton": 10_000})
# The interpreter takes milliseconds per kernel where a GPU takes microseconds. Only amounts shrink.
INTERPRETED = Budget(control_steps={"triton": 300}, trajectory=5, rounds=1, elements=2_000)


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser):
    parser.addoption("--part", help="run every N-th test only, from the I-th on: I/N, with I from 0")
    parser.addoption("--exhaustive", action="store_true", help="run what is marked so, too, and more random numbers")
    parser.addoption("--few", action="store_true", help="run the first and the last parametrisation of each test only")
    parser.addoption("--backend", action="append", help="backend under conformance test (default: see above)")
    parser.addoption("--control-steps", type=int, help="random control steps compared with transformers, per backend")
    parser.addoption("--device", default="cpu", help="device of the parameters in the conformance suite (default: cpu)")


def pytest_configure(config):
    examples = 3 if interpreted() else 60 if config.getoption("--exhaustive") else 20
    settings.register_profile("here", max_examples=examples, derandomize=True, deadline=None, database=None)
    settings.load_profile("here")
    if interpreted() and importlib.util.find_spec("triton"):
        from support.interpreted import patch_once, skip_overflow_checks

        patch_once()
        skip_overflow_checks()
    torch.set_num_threads(1)  # small tensors; tests of threading ask for more


def backends(config) -> list[str]:
    if chosen := config.getoption("--backend"):
        return chosen
    return ["reference", "cpu", "cuda"] if config.getoption("--device") == "cpu" else ["reference", "cuda", "triton"]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(metafunc.config))


def long_ones_first(items, processes):
    """Of several processes (pytest-xdist) each begins with its share of the items in a row; who has none left takes
    some from the end of another's, but never the one that this other would run next. Long ones of a file stay together,
    for what they share is made once in each process.
    """
    long = [item for item in items if item.get_closest_marker("slow")]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    order = []
    for i in range(processes):
        first = long[len(long) * i // processes : len(long) * (i + 1) // processes]
        count = (len(items) - len(order)) // (processes - i) - len(first)
        order += first + rest[: max(count, 0)]
        del rest[: max(count, 0)]
    return order + rest


def ends(items):
    """The first and the last of each test function. They differ in all parameters that have more than one value."""
    first, last = {}, {}
    for item in items:
        name = item.nodeid.partition("[")[0]
        first.setdefault(name, item)
        last[name] = item
    kept = {*first.values(), *last.values()}
    return [item for item in items if item in kept]


def choose(config, items):
    """Leave out what the options do not ask for."""
    kept = [item for item in items if config.getoption("--exhaustive") or not item.get_closest_marker("exhaustive")]
    if config.getoption("--few"):
        kept = ends(kept)
    if part := config.getoption("--part"):
        first, step = map(int, part.split("/"))
        kept = kept[first::step]
    chosen = {*kept}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def pytest_collection_modifyitems(config, items):
    choose(config, items)
    if hasattr(config, "workerinput"):
        items[:] = long_ones_first(items, config.workerinput["workercount"])
    on_gpu = config.getoption("--device") != "cpu"
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
        if item.get_closest_marker("gpu") or on_gpu:  # tests give numbers, for which a user would wait
            item.add_marker(pytest.mark.filterwarnings("ignore:.* expected a tensor as loss for parameters on"))


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_stays():
    """Who collects garbage, or counts it, need not go through all modules each time, nor what tests have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def emulated(request) -> bool:
    """Whether the test is one of the CUDA backend on CPU tensors."""
    callspec = getattr(request.node, "callspec", None)
    return (
        callspec is not None
        and callspec.params.get("backend") == "cuda"
        and request.config.getoption("--device") == "cpu"
    )


@pytest.fixture(autouse=True)
def _emulation(request, monkeypatch):
    if emulated(request):
        from support.emulated import install

        install(monkeypatch)


@pytest.fixture
def budget(request) -> Budget:
    chosen = INTERPRETED if interpreted() else EXHAUSTIVE if request.config.getoption("--exhaustive") else NATIVE
    steps = request.config.getoption("--control-steps")
    return chosen if steps is None else replace(chosen, control_steps=dict.fromkeys(chosen.control_steps, steps))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20250711)
