"""The machine code of the CUDA kernels, as it lies in the module that was built; no GPU is needed.

The compiler loses speed and exactness silently: an access that stays narrow, a value kept in memory for want of a
register, float64 in the loop over elements, a product contracted into the sum after it.
"""

import re
from collections import Counter

import pytest
from support.machine_code import (
    BYTES,
    TARGETS,
    accesses,
    check_backup_code,
    check_measure_loop,
    check_update_loop,
    each,
    each_target,
    elements,
    float64,
    floor,
    in_sectors,
    inner_loops,
    loop_lines,
    main_loops,
    matching,
    moved,
    needs_tools,
    streams,
    update_kernels,
)
from support.rates import GPUS, each_gpu

from greedylr_fused.tensors.formats import MIXES, DType

pytestmark = needs_tools
#: Moments of 8 bits: test_cuda_eight_bit_code.py
CASES = [(target, mix) for target in TARGETS for mix in sorted(MIXES) if DType.Q8 not in mix]


def only(codes, name):
    (code,) = [code for symbol, code in codes.items() if name in symbol]
    return code


@each_target
def test_every_mix_has_a_kernel(kernels, target):
    assert set(update_kernels(kernels(target))) == MIXES


@each(CASES)
def test_update_code(kernels, target, mix, record_property):
    code = update_kernels(kernels(target))[mix]
    record_property("registers", code.registers)
    # 64 registers let 1024 threads run at once on a multiprocessor; values of 64 bits may take 80.
    assert code.registers <= (80 if DType.F64 in mix else 64)
    wide = [lines for lines in loop_lines(code, r"LDG\.") if is_wide(opcodes(lines), mix)]
    assert {moved(opcodes(lines)) / elements(opcodes(lines)) for lines in wide} == {
        floor(mix),
        floor(mix, amsgrad=True),
    }
    for lines in wide:
        assert in_sectors(lines) == moved(opcodes(lines)), "accesses of parts of sectors"
    for loop in main_loops(code):
        check_update_loop(loop, mix)
        assert matching(loop, r"MEMBAR|LD\.|ST\.") == 0


def opcodes(lines):
    return Counter(opcode for opcode, _ in lines)


def is_wide(loop, mix):
    """Whether each stream is accessed once per turn, the widest by 16 bytes."""
    count = elements(loop)
    widths = {8 * size * count for size in streams(mix) if size}
    return count > 0 and {width for _, width in accesses(loop)} == widths and max(widths) == 128


@each(CASES)
def test_every_path_rounds_alike(kernels, target, mix):
    """The bits of an element do not depend on its place in a pack, or on the alignment of its streams: each path, wide
    and narrow, takes as many products, sums and fused ones for each element.
    """
    loops = inner_loops(update_kernels(kernels(target))[mix], r"MUFU\.RSQ(64H)?$")
    assert len(loops) >= 4, "wide and narrow, with and without amsgrad"
    letter = "D" if DType.F64 in mix else "F"
    opcodes = [rf"{letter}{name}(\.|$)" for name in ("MUL", "ADD", "FMA")]
    counts = {tuple(matching(loop, opcode) / elements(loop) for opcode in opcodes) for loop in loops}
    assert len(counts) == 1 and all(count == int(count) for count in min(counts))


@each_target
def test_backup_code(kernels, target, record_property):
    check_backup_code(only(kernels(target), "backup_kernel"), record_property)


@each_target
def test_nothing_is_spilled(kernels, target):
    assert not {symbol: code.spills() for symbol, code in kernels(target).items() if code.spills()}


@pytest.mark.parametrize("l1", [False, True], ids=["", "l1"])
@pytest.mark.parametrize("pairs", [False, True], ids=["doubles", "pairs"])
@each_target
def test_measure_code(kernels, target, pairs, l1, record_property):
    code = measure_kernel(kernels(target), l1=l1, pairs=pairs)
    record_property("registers", code.registers)
    assert code.registers <= 64, "fewer than 1024 threads, with 64 bytes under way each, run at once"
    read = []
    for loop in main_loops(code):
        assert {kind for kind, _ in accesses(loop)} == {"LDG"}
        wide = 16 * accesses(loop)["LDG", 128]
        assert moved(loop) in (64, 2 * 16), "four packs, or one and once more, narrow, for a gradient off 16 bytes"
        added = check_pairs_loop(loop, l1=l1) if matching(loop, "FFMA") else check_measure_loop(loop, l1=l1)
        assert wide % added == 0 and wide >= 16
        if wide == 64:
            read.append(wide // added)
    assert sorted(read) == sorted(BYTES.values())


def measure_kernel(codes, *, l1, pairs):
    return only(codes, f"measure_kernelILb{l1:d}ELb{pairs:d}E")


def check_pairs_loop(loop, *, l1):
    """As `check_measure_loop`, for pairs of float32."""
    assert not float64(loop) and matching(loop, "MUFU|BAR|LDS|STS|SHFL|[FI]2") == 0
    added = matching(loop, "FFMA") // 3  # the rough sum, the sum, and what it lacks
    packs = accesses(loop)["LDG", 128]
    assert matching(loop, "FFMA") == 3 * added
    # What a sum lacks takes two more for each element, absolute values five; what joins a pack to a pair, seven.
    assert matching(loop, "FADD|FMUL") <= (7 if l1 else 2) * added + (14 if l1 else 7) * packs
    return added


@each_target
def test_rings_of_spikes_are_read_four_values_at_a_time(kernels, target):
    """By each lane, in both passes over both rings: 128 values wait for memory once a pass."""
    loops = inner_loops(only(kernels(target), "clip_kernel"), r"LDG\.")
    passes = [matching(loop, "DADD") for loop in loops if accesses(loop) == {("LDG", 64): 4} and float64(loop)]
    assert sorted(passes) == [8, 8, 12, 12]


#: Where arithmetic takes longer than memory does, and by how much: absolute values of 16 bits in pairs.
SLOWER = {("B300", True, 2): 1.55}


@pytest.mark.parametrize("l1", [False, True], ids=["", "l1"])
@each_gpu(GPUS)
def test_the_norm_takes_no_longer_than_memory(kernels, gpu, l1, record_property):
    code = measure_kernel(kernels(gpu.target), l1=l1, pairs=gpu.is_slow_at_double)
    loops = [loop for loop in main_loops(code) if accesses(loop) == {("LDG", 128): 4}]
    narrow = [loop for loop in loops if not is_of_float64(loop)]
    assert len(narrow) == len(loops) - 1 == 3
    for loop in narrow:
        memory = 64 / gpu.bytes_per_clock
        added = matching(loop, "DFMA") or matching(loop, "FFMA") // 3
        share = gpu.clocks(loop) / memory
        record_property(f"share of memory's time, {64 // added} bytes an element", round(share, 2))
        assert share < SLOWER.get((gpu.name, l1, 64 // added), 1.0)


def is_of_float64(loop):
    return matching(loop, "DFMA") == 8


@each_target
def test_the_end_of_a_launch_is_short(kernels, target):
    """One fence for the atomic that counts blocks, not one each way that orders all others, too; and what adds up the
    lots has eight of them under way.
    """
    for symbol, code in kernels(target).items():
        opcodes_of = Counter(opcode for opcode, _ in code.lines)
        atomics = matching(opcodes_of, "ATOM")
        assert atomics == (re.search("update|tune_kernel|measure", symbol) is not None)
        assert matching(opcodes_of, r"MEMBAR\.\w+\.GPU") == atomics and matching(opcodes_of, r"MEMBAR\.SC\.GPU") == 0
        if "measure" in symbol:
            loops = [loop for loop in inner_loops(code, "DADD") if not matching(loop, "DFMA")]
            sums = 3 if "measure_tuned" in symbol else 1  # three more of each lot, with a tuner
            assert max(accesses(loop)["LDG", 32] for loop in loops) == 8 * sums


@each_target
def test_the_host_sees_a_snapshot_in_order(kernels, target):
    """Two fences of the whole system, in each kernel that closes a step."""
    for name, code in kernels(target).items():
        fences = [opcode for opcode, _ in code.lines if re.match(r"MEMBAR\S*\.SYS", opcode)]
        assert len(fences) == (2 if re.search("update_kernel|tune_kernel|control_", name) else 0), name


def test_nothing_is_contracted(extracted):
    """No product or sum is left to the assembler to fuse, neither in elements nor in control, wherever it was inlined.
    What is fused on purpose: the norm's squares, and what powers, roots and quotients are made of.
    """
    (source,) = extracted.glob("*.ptx")
    text = source.read_text()
    assert not re.search(r"\b(mul|mad|add|sub|fma)\.(ftz\.)?f(32|64)\b", text)
    for kernel in ("clip_kernel", "control_kernel"):
        body = re.search(rf"^\.visible \.entry \w*{kernel}\w*\(.*?^}}", text, re.M | re.S)[0]
        assert not re.search(r"\bfma\.rn\.f64|(div|sqrt|rcp)\.(full|approx)", body)
