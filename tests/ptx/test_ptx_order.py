"""The order of threads in the emitted PTX: any schedule gives the same bits, nothing shared is left without order, and
of what orders it nothing can be left out; nor can a wrong instruction, so that the comparison is known to see them.
"""

import re

import pytest
from support.machine_code import needs_tools

from ptx import Fault
from ptx.comparison import STEPS, Comparison
from ptx.grid import Execution
from ptx.problem import ALL_MIXES, Problem
from ptx.races import Races
from ptx.rounding import AS_ON_THE_HOST
from ptx.translating import Program

pytestmark = needs_tools
#: Every part of a chunk, and in the launch that closes the step more chunks than all warps,
#: of more than one block, prepare at a time.
SIZES = [*range(10), 17, 40, 255, 257, 300, *range(10), 40, 300, *[1, 2, 3, 4] * 40]
F32, EIGHT_BIT = ALL_MIXES[0], ALL_MIXES[-1]
UPDATE, MEASURE = "13update_kernelILNS_5DTypeE0ELS2_0ELS2_0EE", "14measure_kernelILb0ELb0EE"
UPDATE_EIGHT_BIT = "13update_kernelILNS_5DTypeE6ELS2_2ELS2_7EE"


def watched(device, program, mix, *, steps=STEPS, schedule="together", seed=0) -> None:
    """Steps with all accesses watched; whatever is wrong is raised."""
    problem, equal = (Problem((mix, mix), SIZES, device.native.scratch_bytes(), seed) for _ in range(2))
    races = Races(problem.arena.base, problem.arena.size)
    execution = Execution(program, schedule, seed, problem.arena.allowed(), races)
    comparison = Comparison(device, execution, problem, equal)
    for step in steps:
        comparison.take(step)
    comparison.finish()
    assert races.checked > 1000


def mutated(text: str, kernel: str, pattern: str, replacement: str, number: int = 0) -> str:
    """The module with the `number`-th match in a kernel replaced."""
    begin = re.search(rf"^\.visible \.entry \w*{kernel}", text, re.M).end()
    end = re.compile(r"^\.(visible|func)", re.M).search(text, begin).start()
    found = list(re.compile(pattern, re.M).finditer(text, begin, end))[number]
    return text[: found.start()] + found.expand(replacement) + text[found.end() :]


@pytest.mark.parametrize(
    "mix, schedule, seed",
    [
        (F32, "random", 1),
        pytest.param(ALL_MIXES[4], "random", 2, marks=pytest.mark.exhaustive),
        (ALL_MIXES[-1], "one by one", 3),
    ],
)
def test_every_schedule_gives_the_same_bits_without_a_race(device, program, mix, schedule, seed):
    watched(device, program, mix, steps=STEPS[:3], schedule=schedule, seed=seed)


ATOMIC, FENCE = r"^atom\.acq_rel\.gpu(.*)", "membar.gl;"


@pytest.mark.parametrize(
    "kernel, pattern, replacement, number",
    [
        pytest.param(MEASURE, r"^bar\.sync\b[^;]*;", "", 0, id="barrier before measure's atomic"),
        pytest.param(MEASURE, ATOMIC, r"atom.acquire.gpu\1", 0, id="its release"),
        pytest.param(MEASURE, ATOMIC, r"atom.release.gpu\1", 0, id="its acquire"),
        pytest.param(UPDATE, r"^bar\.warp\.sync\b[^;]*;", "", 0, id="task read, then written"),
        pytest.param(UPDATE, r"^bar\.warp\.sync\b[^;]*;", "", 1, id="task written, then read"),
        pytest.param(UPDATE, r"^bar\.sync\b[^;]*;", "", 0, id="barrier before update's atomic"),
        pytest.param(UPDATE, ATOMIC, r"atom.acquire.gpu\1", 0, id="its release too"),
        pytest.param(UPDATE, ATOMIC, r"atom.release.gpu\1", 0, id="its acquire too"),
        pytest.param(UPDATE, ATOMIC, rf"atom\1 {FENCE}", 0, id="of two fences the first"),
        pytest.param(UPDATE, ATOMIC, rf"{FENCE} atom\1", 0, id="of two fences the second"),
    ],
)
def test_nothing_that_orders_can_be_left_out(device, ptx, kernel, pattern, replacement, number):
    program = Program(mutated(ptx, kernel, pattern, replacement, number), AS_ON_THE_HOST)
    with pytest.raises(Fault, match="race: "):
        watched(device, program, F32, steps=STEPS[1:2])


def test_two_fences_order_as_much(device, ptx):
    program = Program(mutated(ptx, UPDATE, ATOMIC, rf"{FENCE} atom\1 {FENCE}"), AS_ON_THE_HOST)
    watched(device, program, F32, steps=STEPS[1:2])


@pytest.mark.parametrize(
    "kernel, pattern, replacement, message",
    [
        pytest.param(MEASURE, r"^(shfl.*), 16, 31,", r"\1, 8, 31,", "grad_sq_sum", id="wrong lane"),
        pytest.param(UPDATE, r"^(st\.global\.v4.*)\]", r"\1+16]", "race|outside|differ", id="stored one pack farther"),
        pytest.param(UPDATE, r"^sub\.rn\.f32", "add.rn.f32", "differ", id="wrong sign"),
        pytest.param(UPDATE, r"^(atom\..*)\.add\.u32", r"\1.inc.u32", "unknown", id="unknown opcode"),
    ],
)
def test_a_wrong_instruction_is_seen(device, ptx, kernel, pattern, replacement, message):
    program = Program(mutated(ptx, kernel, pattern, replacement), AS_ON_THE_HOST)
    with pytest.raises((Fault, AssertionError), match=message):
        watched(device, program, F32, steps=STEPS[:2])


@pytest.mark.parametrize(
    "pattern, replacement, message",
    [
        pytest.param(r"^bar\.warp\.sync\b[^;]*;", "", "race: read before", id="scales read, then written"),
        pytest.param(r"^(shfl.*), 8, 31,", r"\1, 4, 31,", "differ", id="a lane of the group left out"),
        pytest.param(r"^add\.rz\.f32", "add.f32", "differ", id="codes to nearest"),
        pytest.param(r"^(prmt\.b32 .*), 0xba98;", r"\1, 0x3210;", "differ", id="exp_avg where exp_avg_sq is 0"),
    ],
)
def test_a_wrong_instruction_for_groups_is_seen(device, ptx, pattern, replacement, message):
    for number in (-1, -2, 2, 3):  # with and without full turns, of two forms of the update; not those of tasks
        program = Program(mutated(ptx, UPDATE_EIGHT_BIT, pattern, replacement, number), AS_ON_THE_HOST)
        try:
            watched(device, program, EIGHT_BIT, steps=STEPS[:1])
        except (Fault, AssertionError) as found:
            assert re.search(message, str(found))
            return
    pytest.fail("nothing is seen")
