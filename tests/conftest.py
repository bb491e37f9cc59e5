"""Which backends the conformance suite runs, where, and how many random steps it may take.

pytest tests -n logical --dist worksteal             on all cores, as `make test` does
pytest tests                                          reference, cpu, and cuda emulated on the CPU; triton's interpreter
                                                      in its own process
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

NATIVE = Budget(
    control_steps={"cpu": 100_000, "cuda": 40_000, "reference": 7_000, "triton": 20_000},
    trajectory=60,
    rounds=3,
    elements=150_000,
)
# The interpreter takes milliseconds per kernel where a GPU takes microseconds. Only amounts shrink.
INTERPRETED = Budget(control_steps={"triton": 300}, trajectory=5, rounds=1, elements=2_000)


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser):
    parser.addoption("--part", help="run every N-th test only, from the I-th on: I/N, with I from 0")
    parser.addoption("--backend", action="append", help="backend under conformance test (default: see above)")
    parser.addoption("--control-steps", type=int, help="random control steps compared with transformers, per backend")
    parser.addoption("--device", default="cpu", help="device of the parameters in the conformance suite (default: cpu)")


def pytest_configure(config):
    settings.register_profile("native", max_examples=60, derandomize=True, deadline=None, database=None)
    settings.register_profile("interpreted", max_examples=3, derandomize=True, deadline=None, database=None)
    settings.load_profile("interpreted" if interpreted() else "native")
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


def pytest_collection_modifyitems(config, items):
    if part := config.getoption("--part"):
        first, step = map(int, part.split("/"))
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % step != first])
        items[:] = items[first::step]
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
    chosen = INTERPRETED if interpreted() else NATIVE
    steps = request.config.getoption("--control-steps")
    return chosen if steps is None else replace(chosen, control_steps=dict.fromkeys(chosen.control_steps, steps))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20250711)
