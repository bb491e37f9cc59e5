"""The machine code of Triton's update of masters and of moments in 8 bits."""

import re
from collections import Counter

import pytest
from support.compiled import machine_code, update
from support.machine_code import TARGETS, accesses, each, float64, inner_loops, matching, needs_tools, triton

from greedylr_fused.backends.triton.access import INTERPRETED
from greedylr_fused.tensors.formats import MIXES, DType

pytestmark = [pytest.mark.skipif(INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled"), needs_tools]

F32, BF16, R16, R8, Q8 = DType.F32, DType.BF16, DType.BF16_R16, DType.BF16_R8, DType.Q8
STORED = [mix for mix in sorted(MIXES) if mix[2] == Q8 or mix[0] in (R16, R8)]
#: All for one target; for the others one of each kind of loop.
FEW = [(F32, F32, Q8), (BF16, F32, Q8), (R8, BF16, Q8), (R16, BF16, F32), (R8, F32, F32)]
CASES = [(90, mix) for mix in STORED] + [(target, mix) for target in TARGETS if target != 90 for mix in FEW]
BYTES = {F32: 4, BF16: 2, R16: 2, R8: 2, Q8: 1}


#: Whose assembler takes more registers than the next one's for 8 elements at a time.
OLDER = triton.__version__.startswith(("3.5.", "3.6."))


def registers(mix):
    """Budget per thread. 72 lets 7 programs of 128 threads run at once on a multiprocessor, 80 lets 6. Where a thread
    takes 8 elements, 96 lets 5 and 128 lets 4, with more than 32 KB of loads under way.
    """
    if F32 in mix:
        return 80 if OLDER else 72
    return 128 if OLDER else 96


def wide(mix, amsgrad):
    """The accesses of one turn of a loop and thread: each stream once, 16 bytes of the widest."""
    param, grad, state = mix
    count = 16 // max(BYTES[dtype] for dtype in mix)  # elements
    streams = [BYTES[param], *[BYTES[state]] * (3 if amsgrad else 2)]
    streams += {R16: [2], R8: [1]}.get(param, [])
    scales = [32, 32] if state == Q8 else []
    written = [8 * size * count for size in streams] + scales
    loads = [("LDG", bits) for bits in [*written, 8 * BYTES[grad] * count]]
    return Counter(loads + [("STG", bits) for bits in written])


def loops_over_elements(code):
    """The wide ones, in order of their streams."""
    found = [loop for loop in inner_loops(code, r"LDG?\.\S*128") if matching(loop, "MUFU")]
    return sorted(found, key=lambda loop: accesses(loop).total())


def check(target, mix, tmp_path, record_property, *, one_piece):
    kernel = update(target, mix, one_piece=one_piece)
    code = machine_code(kernel, tmp_path)
    record_property("registers", code.registers)
    assert code.registers <= (registers(mix) if one_piece else 128)
    if one_piece and not (target == 100 and OLDER):  # those spill outside of the loops there
        assert not code.spills(), "values spilled to memory"
    assert kernel.metadata.shared <= 16, "streams are rearranged through shared memory"
    loops = loops_over_elements(code)
    assert len(loops) == (1 if mix[2] == Q8 else 2)
    for loop, amsgrad in zip(loops, (False, True), strict=False):
        assert accesses(loop) == wide(mix, amsgrad)
        assert not float64(loop) and matching(loop, r"BAR|ATOM|LDS|STS|LDL|STL|MUFU\.(EX2|LG2|SIN|COS)") == 0
        record_property("instructions", sum(loop.values()))
    return loops


@each(CASES, FEW)
def test_code(target, mix, tmp_path, record_property):
    loop, *_ = check(target, mix, tmp_path, record_property, one_piece=True)
    count = 16 // max(BYTES[dtype] for dtype in mix)
    eight_bit = mix[2] == Q8
    assert matching(loop, r"MUFU\.(RSQ|SQRT)") == (5 if eight_bit else 1) * count, "two roots for each code"
    assert matching(loop, "F2I") == 2 * count * eight_bit and matching(loop, "I2F") == 0, "slow conversions"
    if eight_bit:  # a group lies in one warp, whose lanes exchange its maxima
        lanes = 64 // count
        exchanges = matching(loop, "SHFL"), matching(loop, "C?REDUX")
        assert exchanges == (2 * (lanes.bit_length() - 1), 0) or (exchanges[0] == 0 and exchanges[1] > 0)


@each([(90, mix) for mix in FEW if R8 in mix or Q8 in mix], [(F32, F32, Q8), (R8, BF16, Q8)])
def test_code_of_parameters_in_pieces(target, mix, tmp_path, record_property):
    check(target, mix, tmp_path, record_property, one_piece=False)


def test_arithmetic():
    ptx = update(90, (R8, BF16, Q8)).asm["ptx"]
    exact = {"div.rn.f32", "div.rn.ftz.f32"}  # the second by Triton 3.5
    kinds = {*re.findall(r"\b(?:sqrt|rcp|div)\.\S*f32", ptx)}
    assert kinds <= {"sqrt.rn.f32", "sqrt.rn.ftz.f32", "sqrt.approx.ftz.f32", "div.full.f32", *exact}
    assert kinds & exact, "the reciprocal of a large scale would be 0"
    assert "fma.rn.f32" not in ptx
    assert re.search(r"cvt\.rzi\.s32\.f32", ptx), "codes are not cut off"
