"""The conformance suite once more, with Triton's interpreter on CPU tensors.

In processes of its own: the interpreter is chosen by an environment variable that must be set before triton is
imported, and all other tests want the compiler. On a machine with a GPU the same suite runs natively as well.
"""

import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

PARTS = 2  # each imports all that there is; one alone would be begun first and end last
LEAST = 300  # tests that pass, though of each but the first and the last parametrisation take --exhaustive
LIMIT = 1200  # seconds; a hang, not a measure of speed
#: What is refused, raised, saved, copied or taken apart is no kernel's business, and left to faster backends.
OF_THE_HOST = ("*checkpoint*", "after_errors", "copies", "groups", "inference_mode", "mechanic_state", "shared_state")
OF_THE_HOST += ("subclasses",)


def conformance(*options: str, **environment: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/conformance",
        "tests/backends/test_triton_launches.py",
        "tests/backends/test_triton_stored.py",
        "-q",
        "-p",
        "no:cacheprovider",
        "--backend",
        "triton",
        *options,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_conformance_in_interpreter(part, request):
    pytest.importorskip("triton")
    ignored = (f"--ignore-glob=*/test_{name}.py" for name in OF_THE_HOST)
    amount = "--exhaustive" if request.config.getoption("--exhaustive") else "--few"
    output = conformance(amount, "--part", f"{part}/{PARTS}", *ignored, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > LEAST / PARTS, output[-2000:]


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.gpu
def test_conformance_on_the_gpu():
    pytest.importorskip("triton")
    conformance("--exhaustive", "--device", "cuda", TRITON_INTERPRET="0")
