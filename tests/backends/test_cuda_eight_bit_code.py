"""The machine code of the CUDA kernels for 8-bit moments: accesses, arithmetic, and how long it takes beside memory."""

import math
from collections import Counter

import pytest
from support.machine_code import (
    TARGETS,
    accesses,
    each,
    float64,
    floor,
    in_sectors,
    loop_lines,
    matching,
    mix_name,
    moved,
    needs_tools,
    streams,
    update_kernels,
)
from support.rates import GPUS, each_gpu

from greedylr_fused.tensors.formats import MIXES, DType

pytestmark = needs_tools
EIGHT_BIT = sorted(mix for mix in MIXES if DType.Q8 in mix)
CASES = [(target, mix) for target in TARGETS for mix in EIGHT_BIT]
GROUP = 64
#: Square roots for each element: of exp_avg_sq, and two for each fourth root.
ROOTS = 5


def opcodes(lines):
    return Counter(opcode for opcode, _ in lines if not opcode.startswith(".L"))


def pack(mix):
    """Elements of a lane: one access of the widest stream."""
    return 16 // max(streams(mix))


def expected_accesses(mix):
    """By kind and width: one for each stream; and two scales, of which all lanes of a group read the same."""
    param, grad, state, remainder = streams(mix)
    written = [param, state, state, *([remainder] if remainder else [])]
    found = Counter(("LDG", 8 * size * pack(mix)) for size in [*written, grad])
    found += Counter(("STG", 8 * size * pack(mix)) for size in written)
    return found + Counter({("LDG", 32): 2, ("STG", 32): 2})


def main_loops(code, mix):
    """The loops over packs; of the two forms of the first moment's update one each."""
    loops = [lines for lines in loop_lines(code, r"LDG\.") if accesses(opcodes(lines)) == expected_accesses(mix)]
    assert len(loops) == 2
    return loops


def bytes_per_element(loop, mix):
    """Moved, where a scale counts once for a group, by whose lanes it is read at one address, and written by one."""
    scales = 4 * 4
    return (moved(loop) - scales) / pack(mix) + scales / GROUP


@each(CASES)
def test_each_stream_moves_once_and_in_whole_sectors(kernels, target, mix, record_property):
    code = update_kernels(kernels(target))[mix]
    record_property("registers", code.registers)
    assert code.registers <= 64 and not code.spills()
    for lines in main_loops(code, mix):
        assert bytes_per_element(opcodes(lines), mix) == floor(mix)
        assert in_sectors(lines) == moved(opcodes(lines)), "accesses of parts of sectors"


@each(CASES)
def test_arithmetic_of_a_pack(kernels, target, mix):
    """Reciprocals once for a group, codes into floats without conversions, maxima by shuffles within the group."""
    count = pack(mix)
    for lines in main_loops(update_kernels(kernels(target))[mix], mix):
        loop = opcodes(lines)
        assert matching(loop, "MUFU.SQRT") == ROOTS * count
        assert matching(loop, "MUFU.RCP") == count + 2 and matching(loop, "MUFU") == (ROOTS + 1) * count + 2
        assert matching(loop, "SHFL") == 2 * math.log2(GROUP / count)
        assert matching(loop, "F2I") == count and matching(loop, "I2F") == 0, "one conversion: of a code with a sign"
        assert not float64(loop) and matching(loop, "BAR|ATOM") == 0


#: By GPU and mix, the time of the arithmetic, of which half a dozen roots and quotients and the hash are most, in that
#: of memory at the data sheet's bandwidth. A copy reaches .9 of it.
SHARES = {
    "H200": dict(zip(EIGHT_BIT, (0.85, 1.2, 1.2, 0.95, 0.95, 1.15, 1.18), strict=True)),
    "B200": dict(zip(EIGHT_BIT, (1.25, 1.7, 1.76, 1.38, 1.38, 1.68, 1.73), strict=True)),
}


@pytest.mark.parametrize("mix", EIGHT_BIT, ids=mix_name)
@each_gpu([gpu for gpu in GPUS if gpu.name in SHARES])
def test_share_of_the_time_of_memory(kernels, gpu, mix, record_property):
    for lines in main_loops(update_kernels(kernels(gpu.target))[mix], mix):
        loop = opcodes(lines)
        share = gpu.clocks(loop) / (floor(mix) * pack(mix) / gpu.bytes_per_clock)
        record_property("instructions an element", round(sum(loop.values()) / pack(mix), 1))
        record_property("share of memory's time", round(share, 2))
        assert share <= SHARES[gpu.name][mix]
