"""The machine code of kernels with a tuner: as many bytes as it needs, no value spilled, no float64 in a loop."""

from collections import Counter
from functools import cache

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
from support.compiled import GIVEN, compiled, machine_code  # noqa: E402
from support.machine_code import (  # noqa: E402
    accesses,
    check_update_loop,
    elements,
    floor,
    main_loops,
    moved,
    needs_tools,
    update_kernels,
)
from support.rare import few_of  # noqa: E402

from greedylr_fused.backends.triton import access as triton_access  # noqa: E402
from greedylr_fused.backends.triton import measure as triton_measure  # noqa: E402
from greedylr_fused.backends.triton import update as triton_update  # noqa: E402
from greedylr_fused.backends.triton.backend import TritonBackend  # noqa: E402
from greedylr_fused.backends.triton.mixes import blocks, types_of  # noqa: E402
from greedylr_fused.tensors.formats import MIXES, DType  # noqa: E402

pytestmark = needs_tools
F32, F64, BF16, Q8 = DType.F32, DType.F64, DType.BF16, DType.Q8
TUNED = sorted(mix for mix in MIXES if mix[0] not in (BF16, DType.F16))
#: Registers per thread of an update, which let 1024 threads run at once; values of 64 bits may take more.
REGISTERS = 64
CASES = [(F32, F32, F32), (F64, F64, F64), (F32, BF16, F32), (F32, F32, Q8), (DType.BF16_R16, BF16, F32)]
CASES += [(DType.BF16_R16, BF16, Q8), (DType.BF16_R8, F32, Q8)]
#: Those of every run of the tests: each type that a tuner can move, and 8-bit moments.
FEW = [(F32, F32, F32), (F64, F64, F64), (DType.BF16_R16, BF16, F32), (DType.BF16_R8, F32, Q8)]


def tuned_floor(mix, *, amsgrad=False):
    """With the offset, read and written."""
    return floor(mix, amsgrad=amsgrad) + (16 if F64 in mix else 8)


@cache
def compiled_for(mix, kernel):
    """As the backend launches it: with blocks for streams among which is an offset of 4 bytes."""
    types = types_of(mix)
    constants = {"CHUNK": TritonBackend.chunk_size, "TUNED": True}
    if kernel is triton_update.update_kernel:
        block, rest = blocks((*mix, F32))
        constants |= types | {"ONE_PIECE": True, "CLOSES": True, "HAS_LOSS": True, "snapshot": GIVEN}
    else:
        block, rest = blocks((*mix[:2], F32))
        constants |= {name: types[name] for name in "PGR"} | {"CLOSES": True, "DECIDES": True, "L1": True}
        constants |= {"GROUP": triton_measure.GROUP}
    return compiled(kernel, 90, **constants | {"BLOCK": block, "REST": rest})


@pytest.mark.skipif(triton_access.INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("mix", few_of(CASES, FEW.__contains__), ids=str)
def test_triton(mix, tmp_path, record_property):
    kernel = compiled_for(mix, triton_update.update_kernel)
    code = machine_code(kernel, tmp_path)
    record_property("registers", code.registers)
    assert code.registers <= (84 if F64 in mix else 80) and not code.spills()
    assert kernel.metadata.shared <= 16, "streams are rearranged through shared memory"
    loops = sorted(main_loops(code), key=moved)
    assert loops and moved(loops[0]) >= 16
    if Q8 not in mix:  # whose loop ends in scales that all threads of a group store
        without, amsgrad = loops
        assert moved(without) == tuned_floor(mix) * elements(without)
        assert moved(amsgrad) == tuned_floor(mix, amsgrad=True) * elements(amsgrad)
        for loop in loops:
            check_update_loop(loop, mix)
            assert accesses(loop)["LDG", 128] and accesses(loop)["STG", 128]
    code = machine_code(compiled_for(mix, triton_measure.measure_kernel), tmp_path)
    record_property("registers of the measurement", code.registers)
    assert code.registers <= 80 and not code.spills()


@pytest.mark.parametrize("mix", TUNED, ids=str)
def test_cuda(kernels, mix, record_property):
    named = {
        symbol.replace("tune_kernel", "update_kernel"): code
        for symbol, code in kernels(90).items()
        if "tune_k" in symbol
    }
    found = update_kernels(named)
    assert set(found) == set(TUNED)
    code = found[mix]
    record_property("registers", code.registers)
    assert code.registers <= (80 if F64 in mix else REGISTERS) and not code.spills()
    wide = [loop for loop in main_loops(code) if moved(loop) == tuned_floor(mix) * elements(loop)]
    assert wide or Q8 in mix, [Counter(accesses(loop)) for loop in main_loops(code)]
    for loop in wide:
        check_update_loop(loop, mix)


def test_cuda_measurement(kernels, record_property):
    found = {symbol: code for symbol, code in kernels(90).items() if "measure_tuned_kernel" in symbol}
    assert len(found) == 4
    for code in found.values():
        assert code.registers <= 128 and not code.spills()
