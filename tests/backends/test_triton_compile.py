"""The machine code of the Triton kernels, compiled for NVIDIA GPUs on a machine that needs none.

Speed and exactness are lost silently: an access that stays 4 bytes wide, a value spilled to memory, a constant
rounded to float32, a product contracted into the sum after it. All of these show in the code.
"""

import re
import struct
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
from support.compiled import GIVEN, compiled, machine_code, update  # noqa: E402
from support.machine_code import (  # noqa: E402
    BYTES,
    TOOLS,
    accesses,
    check_backup_code,
    check_measure_loop,
    check_update_loop,
    disassemble,
    each,
    each_target,
    elements,
    floor,
    main_loops,
    matching,
    moved,
    needs_tools,
)
from support.rates import GPUS, each_gpu  # noqa: E402

from greedylr_fused.backends.triton import access as triton_access  # noqa: E402
from greedylr_fused.backends.triton import backup as triton_backup  # noqa: E402
from greedylr_fused.backends.triton import control as triton_control  # noqa: E402
from greedylr_fused.backends.triton import measure as triton_measure  # noqa: E402
from greedylr_fused.backends.triton import update as triton_update  # noqa: E402
from greedylr_fused.backends.triton.backend import TritonBackend  # noqa: E402
from greedylr_fused.backends.triton.mixes import blocks  # noqa: E402
from greedylr_fused.schedules import ROUNDING  # noqa: E402
from greedylr_fused.tensors import CHUNK  # noqa: E402
from greedylr_fused.tensors.formats import MIXES, DType  # noqa: E402

pytestmark = [
    pytest.mark.skipif(triton_access.INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled"),
    needs_tools,
]

F32, F64, BF16, F16 = DType.F32, DType.F64, DType.BF16, DType.F16
TYPES = {F32: triton.language.float32, F64: triton.language.float64}
TYPES |= {BF16: triton.language.bfloat16, F16: triton.language.float16}
#: All mixes of plain types for one target; for the others those whose code differs in more than conversions. The other
#: mixes: test_triton_stored_code.py.
FEW = [(F32, F32, F32), (BF16, BF16, BF16), (BF16, BF16, F32)]
PLAIN = [mix for mix in sorted(MIXES) if all(dtype in TYPES for dtype in mix)]
CASES = [(90, mix) for mix in PLAIN] + [(target, mix) for target in (80, 100) for mix in FEW]
#: (Triton, target) where the compiler keeps what only the close reads in local memory: float64 of the last program.
SPILLS_OUTSIDE = {("3.5", 100), ("3.6", 100), ("3.8", 90)}
#: One value around the subroutine of float64's roots and quotients, which dwarfs it.
SPILLED_IN_LOOPS = {("3.8", 90, (F64, F64, F64)): 2}
KERNELS = [triton_update.update_kernel, triton_measure.measure_kernel]
KERNELS += [triton_control.conclude_kernel, triton_control.clip_kernel, triton_control.control_kernel]
KERNELS += [triton_control.observe_kernel]
CONTROL_KERNELS = KERNELS[2:]
KERNELS += [triton_backup.backup_kernel]


def registers(mix):
    """Budget per thread. 64 lets 8 programs of 128 threads run at once on a multiprocessor; 80 lets 6, which keep as
    many bytes of loads under way where every element is 16 bits wide or 64.
    """
    return 64 if F32 in mix else 80


@cache
def measure(target, dtype, l1=False):
    block, rest = blocks([dtype])
    constants = {"G": TYPES[dtype], "CHUNK": TritonBackend.chunk_size, "BLOCK": block, "REST": rest}
    constants |= {"GROUP": triton_measure.GROUP, "CLOSES": True, "DECIDES": True, "L1": l1}
    return compiled(triton_measure.measure_kernel, target, **constants)


@cache
def control(target, kernel, searches=False):
    constants = {"DECIDES": True, "L1": True, "HAS_LOSS": True, "WEIGHT_AT": False, "snapshot": GIVEN}
    constants |= {"SEARCHES": searches}
    return compiled(kernel, target, **{name: value for name, value in constants.items() if name in kernel.arg_names})


@each(CASES, [*FEW, (F64, F64, F64), (F16, F16, F16)])
def test_update_code(target, mix, tmp_path, record_property):
    kernel = update(target, mix)
    code = machine_code(kernel, tmp_path)
    record_property("registers", code.registers)
    assert code.registers <= registers(mix)
    if (triton.__version__[:3], target) not in SPILLS_OUTSIDE:
        assert not code.spills(), "values spilled to memory"
    spilled = sum(matching(loop, r"LDL|STL") for loop in main_loops(code))
    assert spilled <= SPILLED_IN_LOOPS.get((triton.__version__[:3], target, mix), 0)
    # The atomic counter's value goes to all threads through shared memory, and nothing else does.
    assert kernel.metadata.shared <= 16, "streams are rearranged through shared memory"
    without, amsgrad = sorted(main_loops(code), key=moved)
    # One access per stream and thread: 16 bytes of the widest type, as many elements of the others.
    wide = {dtype: 128 if dtype == F32 or F32 not in mix else 64 for dtype in mix}
    param, grad, state = (wide[dtype] for dtype in mix)
    loads, stores = [("LDG", param), ("LDG", grad), *[("LDG", state)] * 2], [("STG", param), *[("STG", state)] * 2]
    assert accesses(without) == Counter(loads + stores)
    assert accesses(amsgrad) == Counter([*loads, *stores, ("LDG", state), ("STG", state)])
    assert moved(without) == floor(mix) * elements(without)
    assert moved(amsgrad) == floor(mix, amsgrad=True) * elements(amsgrad)
    for loop in (without, amsgrad):
        check_update_loop(loop, mix)
        assert matching(loop, "LDS|STS") == 0


@each([(90, mix) for mix in FEW], FEW[:1])
def test_update_code_that_closes_a_search(target, mix, tmp_path, record_property):
    code = machine_code(update(target, mix, searches=True), tmp_path)
    record_property("registers", code.registers)
    assert code.registers <= registers(mix)
    assert not code.spills(), "values spilled to memory"


def test_only_the_last_launch_closes():
    closing, other = (update(90, (F32, F32, F32), closes=closes).asm["ptx"] for closes in (True, False))
    assert re.search(r"atom\.\S*acq_rel\S*\.add", closing) and "atom" not in other
    before = closing[: closing.index("atom.")]
    assert re.search(r"bar(rier)?\.(cta\.)?sync", before), "threads may store after their program was counted"


def test_the_host_sees_a_snapshot_in_order():
    """The number; a barrier, each thread's fence of the whole system, its slots; both again; the number."""
    for kernel in (control(90, triton_control.control_kernel), update(90, (F32, F32, F32))):
        parts = re.split(r"fence\.acq_rel\.sys;", kernel.asm["ptx"])
        assert len(parts) == 3
        number, slots, again = (re.findall(r"st\.global|bar\.sync|barrier\.cta\.sync", part) for part in parts)
        assert number[-2][:2] == "st" and number[-1][:3] == "bar", "the number, then all threads' fences"
        assert slots[0][:2] == "st" and [what[:2] for what in slots] == ["st", "ba"], "one store of each thread"
        assert again[:1] == ["st.global"]


def test_update_arithmetic():
    ptx = update(90, (F32, F32, F32)).asm["ptx"]
    roots = {*re.findall(r"sqrt\.\S+f32", ptx)}
    assert roots and roots <= {"sqrt.rn.f32", "sqrt.rn.ftz.f32"}  # Triton 3.5 flushes subnormals: below 1e-19 of a root
    assert re.search(r"max\.NaN\.f32", ptx), "amsgrad drops NaN"
    assert "cvt.rn.bf16" in update(90, (BF16, BF16, BF16)).asm["ptx"], "bf16 is not rounded to nearest even"
    for root in re.findall(r"(?:sqrt|div)\S*f64", update(90, (F64, F64, F64)).asm["ptx"]):
        assert root in ("sqrt.rn.f64", "div.rn.f64")


@each_target
@pytest.mark.parametrize("dtype", sorted(TYPES), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("l1", [False, True], ids=["", "l1"])
def test_measure_code(target, dtype, l1, tmp_path, record_property):
    kernel = measure(target, dtype, l1)
    code = machine_code(kernel, tmp_path)
    record_property("registers", code.registers)
    assert code.registers <= (64 if l1 else 48), "8 programs of 128 threads are to run at once, 10 without L1"
    assert not code.spills()
    assert kernel.metadata.shared <= 1024, "more than the sums of four warps goes through shared memory"
    loops = main_loops(code)
    assert max(map(moved, loops)) >= 32, "fewer than two loads are under way per thread"
    for loop in loops:
        assert accesses(loop).keys() == {("LDG", 128)}
        assert moved(loop) == BYTES[dtype] * check_measure_loop(loop, l1=l1)


@each_gpu([gpu for gpu in GPUS if not gpu.is_slow_at_double])
@pytest.mark.parametrize("dtype", sorted(TYPES.keys() - {F64}), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("l1", [False, True], ids=["", "l1"])
def test_the_norm_takes_no_longer_than_memory(gpu, dtype, l1, tmp_path, record_property):
    for loop in main_loops(machine_code(measure(gpu.target, dtype, l1), tmp_path)):
        share = gpu.clocks(loop) / (moved(loop) / gpu.bytes_per_clock)
        record_property("share of memory's time", round(share, 2))
        assert share < 1


@pytest.mark.parametrize("dtype", sorted(TYPES.keys() - {F64}), ids=lambda dtype: dtype.name)
def test_measure_arithmetic(dtype):
    """Its powers of two are exact: a literal that passes through float32 would be infinite."""
    found = {*re.findall(r"0d[0-9A-F]{16}", measure(90, dtype).asm["ptx"])}
    assert {f"0d{struct.pack('>d', 2.0**power).hex().upper()}" for power in (896, 256)} <= found


@pytest.mark.parametrize("l1", [False, True], ids=["", "l1"])
def test_a_gradient_that_moves_keeps_its_norm(l1):
    """Wide or narrow, all elements of a chunk end in one sum (of each kind) over the same threads; and so they do where
    they have to be added up as they are.
    """
    code = measure(90, BF16, l1).asm["ttgir"]
    block, _ = blocks([BF16])
    assert len(re.findall(rf"\(tensor<{block}xf64, #\w+>\) -> f64", code)) == 2 * (1 + l1)


@each_target
@pytest.mark.parametrize("kernel", CONTROL_KERNELS, ids=lambda kernel: kernel.__name__)
def test_control_is_exact_float64(kernel, target, tmp_path):
    """No multiply-add but those inside division and square root, which are rounded correctly."""
    check_exact(control(target, kernel).asm["ptx"], tmp_path)


def test_a_search_is_exact_float64(tmp_path):
    ptx = control(90, triton_control.control_kernel, searches=True).asm["ptx"]
    assert literal(1.0 + ROUNDING) in ptx
    check_exact(ptx, tmp_path)


def check_exact(ptx, tmp_path):
    assert not re.search(r"\bfma\.|\bmad\.\S*f", ptx)
    assert not re.search(r"\b(add|sub|mul)\.f64", ptx), "without .rn the assembler may contract"
    assert {*re.findall(r"\b(?:div|sqrt|rcp)\.\S+", ptx)} <= {"div.rn.f64", "sqrt.rn.f64"}
    assert not re.search(r"cvt\.f64\.f32", ptx), "a value passes through float32"

    assert "cvt.rn.f32.f64" not in ptx
    # What remains when both are replaced by single instructions must hold no multiply-add at all.
    plain = ptx.replace("div.rn.f64", "add.rn.f64").replace("sqrt.rn.f64", "neg.f64")
    source, cubin = tmp_path / "plain.ptx", tmp_path / "plain.cubin"
    source.write_text(plain)
    newest = TOOLS / "ptxas-blackwell"
    assembler = newest if newest.exists() else TOOLS / "ptxas"
    gpu_name = re.search(r"\.target (sm_\w+)", ptx).group(1)
    subprocess.run([assembler, f"--gpu-name={gpu_name}", source, "-o", cubin], check=True)
    (code,) = disassemble(cubin).values()
    assert not [opcode for opcode, _ in code.lines if opcode.startswith("DFMA")]


def literal(value):
    return f"0d{struct.pack('>d', value).hex().upper()}"


def test_control_constants():
    clip = control(90, triton_control.clip_kernel).asm["ptx"]
    assert literal(1e-6) in clip
    allowed = {literal(value) for value in (0.0, 1.0, -1.0, 2.0, float("inf"), -float("inf"))}
    close = control(90, triton_control.control_kernel).asm["ptx"]
    assert {*re.findall(r"0d[0-9A-F]{16}", close)} <= allowed


@each_target
def test_backup_code(target, tmp_path, record_property):
    constants = {"CHUNK": CHUNK, "BLOCK": triton_backup.BLOCK, "REST": triton_backup.REST}
    kernel = compiled(triton_backup.backup_kernel, target, **constants)
    check_backup_code(machine_code(kernel, tmp_path), record_property)
    assert kernel.metadata.shared == 0


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_no_argument_value_recompiles(kernel):
    """Triton compiles anew for integers equal to 1 or divisible by 16, and for aligned pointers, unless told not to."""
    assert [p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize)] == []


def test_says_where_it_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("greedylr_fused.backends.triton.backend._no_driver", lambda: None)
    assert TritonBackend.unavailable(torch.device("cuda", 1)) is None
    assert "TRITON_INTERPRET=1" in TritonBackend.unavailable(torch.device("cpu"))
    assert "'mps'" in TritonBackend.unavailable(torch.device("mps"))


def test_package_imports_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import greedylr_fused as g; print(g.available_backends()['triton'])"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "cannot be imported" in run.stdout
