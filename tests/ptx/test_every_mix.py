"""The emitted PTX of every mix of storage types against the `cpu` backend, bit for bit.

Products are rounded before they are added to, as in the source, and pow is the C library's: what is left is equal.
"""

import re

import numpy as np
import pytest
from support.machine_code import mix_name, needs_tools
from support.rare import few_of

from ptx.comparison import STEPS, Comparison, Step
from ptx.device import FAST, SLOW
from ptx.grid import Execution
from ptx.problem import ALL_MIXES, SCHEDULES, Problem

pytestmark = needs_tools
#: Elements of tensors: every number that ends in some part of a pack, on either side of the chunk's size, and above.
SIZES = [*range(24), *range(24), 64, 129, 255, 257, 263, 264, 511, 521, 300, 7, 9, 11, 600]
WINDOWS = [0, 5, 600]  # the last is more than fits on the chip
#: Of an update kernel's instructions; the rest are the control code's options, searches first, and the device's pow.
COVERED = 0.55
#: Of which every run of the tests takes these, each with the mix before it: all types, windows and ways to add up.
FEW = {*range(0, len(ALL_MIXES), 5), len(ALL_MIXES) - 1}
NUMBERS = few_of(range(len(ALL_MIXES)), FEW.__contains__)
every_mix = pytest.mark.parametrize("number", NUMBERS, ids=[mix_name(mix) for mix in ALL_MIXES])


def compared(device, program, number: int, sizes: list[int]) -> Comparison:
    mixes = ALL_MIXES[number - 1], ALL_MIXES[number]
    window, l1 = WINDOWS[number % 3], number % 2 == 1
    scratch = device.native.scratch_bytes()
    problem, equal = (Problem(mixes, sizes, scratch, number, window, l1) for _ in range(2))
    execution = Execution(program, allowed=problem.arena.allowed())
    return Comparison(device, execution, problem, equal, SLOW if number // 2 % 2 else FAST)


@every_mix
def test_every_mix_gives_the_bits_of_the_cpu(device, program, number):
    comparison = compared(device, program, number, SIZES)
    for step in STEPS:
        comparison.take(step)
    comparison.finish()
    types = "".join(str(int(dtype)) for dtype in ALL_MIXES[number])
    for kernel, (executed, total) in program.coverage().items():
        if "update_kernel" in kernel and "".join(re.findall(r"(?:DTypeE|S\d*_)(\d)E", kernel)) == types:
            assert executed > COVERED * total, f"{executed} of {total} instructions were executed"
            return
    pytest.fail("its kernel was not executed")


@every_mix
def test_every_mix_decides_as_the_cpu(device, program, number):
    """Each kernel has a copy of the control code, which the compiler has woven into what surrounds it."""
    comparison = compared(device, program, number, [1, 5])
    random = np.random.default_rng(number)
    for k in range(18):
        if k % 3 == 0:
            schedule = {name: random.choice(values) for name, values in SCHEDULES.items()}
            comparison.set_schedule(schedule)
        loss, weight = random.choice([0.5, 1.0, 1.5, 2.0, -1.0, np.nan, np.inf]), random.choice([0.0, 1.0, 2.0, 2.0])
        comparison.take(Step(f"step {k}, {schedule}", loss, weight, measures=k % 9 == 8, apart=k % 9 == 8))
    comparison.finish()


def test_spikes_are_those_of_the_cpu(device, program):
    """Over rings that fill and wrap, and whose oldest value is anywhere."""
    comparison = compared(device, program, 0, [1, 5])
    empty = dict.fromkeys(("spike_losses", "losses_head", "spike_norms", "norms_head"), 0.0)
    comparison.set_schedule(empty | {"spike_sigmas": 2.0, "kind": 0.0})
    random = np.random.default_rng(7)
    for k in range(90):
        size, loss = (random.choice([1.0, 1.0, 1.0, 9.0]) * random.uniform(0.9, 1.1) for _ in range(2))
        comparison.take(Step(f"step {k}", loss, 1.0, gradients=size, apart=True))
    comparison.finish()
    assert 3 < comparison.ours["spikes"] < 30


@pytest.mark.parametrize("driver", [12000, 13000])
def test_words_arrive_whole(device, program, driver):
    """They are parameters of kernels, as many as the driver takes."""
    device.execution = Execution(program)
    device.set_up(driver=driver)
    for count in (1, 447, 449, 5001):
        words = np.arange(count) + (1 << 40)
        target = np.zeros(count + 2, np.int64)
        device.run(device.native.send, target.ctypes.data + 8, words.ctypes.data, count, 0, 0)
        assert target.tolist() == [0, *words.tolist(), 0]
