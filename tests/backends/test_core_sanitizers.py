"""The C++ programs of csrc/tests, compiled with the sanitizers and run: no framework, no Python in the process."""

import native_build as native
import native_cuda
import pytest
from support import sanitizers
from support.rare import few_of
from support.sanitizers import compiler_here

ONE = "1000"  # from one mix to the next that is run


def passes(*command, **variables):
    done = sanitizers.run(*command, **variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["formats", "control", "search", "snapshot"])
def test_core(program):
    passes(sanitizers.program(program, "address,undefined", ()))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", ["loops", "stored"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_loops(sanitizer, source):
    passes(sanitizers.program(source, sanitizer, native.cpu_objects(compiler_here())))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cuda_sums():
    program = sanitizers.program("measure", "address,undefined", native_cuda.emulated_objects())
    passes(program, ASAN_OPTIONS="detect_stack_use_after_return=0")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cuda_kernels(sanitizer, request):
    """Under the thread sanitizer, which takes four times as long, every fifth mix without --exhaustive."""
    loops = next(tested for tested in native.cpu_objects(compiler_here()) if tested.name == "loops_baseline")
    program = sanitizers.program("cuda", sanitizer, [*native_cuda.emulated_objects(), loops])
    fast = sanitizer != "thread" or request.config.getoption("--exhaustive")
    passes(program, "1" if fast else "5", ASAN_OPTIONS="detect_stack_use_after_return=0")
    if sanitizer != "thread":  # a second stack for each of thousands of GPU threads: six times the time of all else
        passes(program, ONE)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sanitizer", few_of(["address,undefined", "thread"], lambda sanitizer: sanitizer != "thread"))
def test_tuner(sanitizer):
    tested = [*native_cuda.emulated_objects(), *native.cpu_objects(compiler_here())]
    passes(sanitizers.program("tuner", sanitizer, tested), ASAN_OPTIONS="detect_stack_use_after_return=0")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_backup(sanitizer):
    cpu = [native.Object(f"cpu/{name}.cpp", f"cpu_{name}") for name in ("backup", "threads")]
    program = sanitizers.program("backup", sanitizer, [*native_cuda.emulated_objects(), *cpu])
    passes(program, ASAN_OPTIONS="detect_stack_use_after_return=0")
