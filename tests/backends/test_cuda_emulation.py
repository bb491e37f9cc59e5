"""The emulation that runs CUDA kernels on the CPU: it finds the mistakes that a GPU would only punish now and then."""

import functools
import re

import native_build as native
import pytest
from support import sanitizers

SANITIZERS = {"plain": None, "address": "address,undefined", "thread": "thread"}
SUM = 2 * sum(range(4000))
seeds = pytest.mark.parametrize("seed", [0, 1])


@pytest.fixture(scope="module")
def run():
    """Runs a case of csrc/tests/mistakes.cpp, compiled plain or with sanitizers at its first use."""

    @functools.cache
    def program(build):
        return sanitizers.program("mistakes", SANITIZERS[build], native.emulation_objects())

    return lambda build, case, seed: sanitizers.run(program(build), case, str(seed))


@pytest.mark.parametrize("build", SANITIZERS)
@pytest.mark.parametrize("kernel", ["none", "fences"])
def test_a_correct_kernel_gives_one_result_in_every_schedule(run, build, kernel):
    outputs = set()
    for seed in range(4):
        done = run(build, kernel, seed)
        assert done.returncode == 0, done.stderr
        assert f"sum {SUM}, " in done.stdout
        outputs.add(done.stdout)
    assert any("in order 0 1 2 3 4" in output for output in outputs) and len(outputs) > 2
    assert run(build, kernel, 3).stdout == done.stdout, "a seed stands for one schedule"


@pytest.mark.parametrize(
    "mistake", ["no-barrier", "no-syncwarp", "no-release", "no-acquire", "no-fence-before", "no-fence-after"]
)
@seeds
def test_what_is_not_ordered_is_a_race(run, mistake, seed):
    done = run("thread", mistake, seed)
    assert "data race" in done.stderr and "mistakes.cpp" in done.stderr


@pytest.mark.parametrize(
    "mistake, message",
    {
        "misaligned": r"thread \d+ of block \d accesses 16 bytes at once at 0x\w+, which is not a multiple",
        "divergent-barrier": r"cannot go on.*block 0: 32 at __syncthreads 32 ended",
        "ended-before-barrier": r"cannot go on.*block 0: 63 at __syncthreads 1 ended",
        "divergent-shuffle": r"cannot go on.*block 0: 33 at __syncthreads 31 at a shuffle",
        "outside-mask": r"reads lane \d+, which is not in the mask 0x",
    }.items(),
)
@seeds
def test_what_is_undefined_ends_the_launch(run, mistake, message, seed):
    for build in ("plain", "address"):
        done = run(build, mistake, seed)
        assert done.returncode == 3 and re.search(message, done.stdout), (done.stdout, done.stderr)


def test_shared_memory_is_as_long_as_declared_and_not_zero_at_first(run):
    assert "use-after-poison" in run("address", "beyond-shared", 0).stderr
    assert f"sum {SUM}, " not in run("plain", "unwritten-shared", 0).stdout
