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
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from greedylr_fused.backends import triton_control, triton_elements  # noqa: E402
from greedylr_fused.backends.triton import CONTROL_OPTIONS, STREAM_OPTIONS, TritonBackend, blocks  # noqa: E402
from greedylr_fused.formats import MIXES, DType  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
pytestmark = [
    pytest.mark.skipif(triton_elements.INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled"),
    pytest.mark.skipif(not (TOOLS / "nvdisasm").exists(), reason="this build of triton has no nvdisasm"),
]

TARGETS = [80, 90, 100]
F32, F64, BF16, F16 = DType.F32, DType.F64, DType.BF16, DType.F16
TYPES = {F32: triton.language.float32, F64: triton.language.float64}
TYPES |= {BF16: triton.language.bfloat16, F16: triton.language.float16}
#: Registers per thread. 72 lets 7 programs run at once on a multiprocessor, 96 lets 5, which keeps 40 KB of loads in
#: flight. The assembler is free to take fewer: over Triton 3.5 to 3.9 it takes 62 to 72, 72 to 90 and 62 to 69.
REGISTERS = {(F32, F32, F32): 72, (BF16, BF16, BF16): 96, (BF16, BF16, F32): 72}
POINTERS = {"numel": "*i64", "ptrs": "*i64", "hyper": "*fp64", "control": "*fp64", "c": "*fp64", "steps": "*fp32"}
POINTERS |= {"group": "*i32", "chunk_tensor": "*i32", "chunk_index": "*i32", "nonfinite": "*i32"}
POINTERS |= {"square_sums": "*fp64", "first_chunk": "i32", "n_tensors": "i32", "n_chunks": "i32"}
KERNELS = [triton_elements.update_kernel, triton_elements.measure_kernel]
KERNELS += [triton_control.finish_kernel, triton_control.decide_kernel, triton_control.commit_kernel]
CONTROL_KERNELS = KERNELS[2:]


def compiled(kernel, target, options, **constants):
    signature = {name: "constexpr" if name in constants else POINTERS[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


@cache
def update(target, mix):
    block, tail = blocks(mix)
    constants = dict(zip("PGS", (TYPES[dtype] for dtype in mix), strict=True))
    constants |= {"CHUNK": TritonBackend.chunk_size, "BLOCK": block, "TAIL": tail}
    return compiled(triton_elements.update_kernel, target, STREAM_OPTIONS, **constants)


@cache
def control(target, kernel):
    constants = {"BLOCK": 1024} if "BLOCK" in kernel.arg_names else {}
    return compiled(kernel, target, CONTROL_OPTIONS, **constants)


def disassemble(cubin, tmp_path):
    """Machine code as (label or opcode, rest of the line), in order, and registers per thread."""
    path = tmp_path / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    registers = int(re.search(r"REG:(\d+)", usage.stdout + usage.stderr).group(1))
    lines = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            lines.append((label.group(1), ""))
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            lines.append((code.group(1), code.group(2)))
    assert len(lines) > 50, text[:2000]
    return lines, registers


def streaming_loops(lines):
    """Opcode counts of the innermost loops that load 16 bytes at a time."""
    labels = {name: i for i, (name, _) in enumerate(lines) if name.startswith(".L")}
    spans = []
    for end, (opcode, rest) in enumerate(lines):
        target = re.search(r"\.L_x_\d+", rest)
        if opcode.startswith("BRA") and target and labels[target.group()] < end:
            spans.append((labels[target.group()], end))
    inner = set()
    for i, (opcode, _) in enumerate(lines):
        around = [span for span in spans if span[0] < i < span[1]]
        if opcode.startswith("LDG.E.128") and around:  # none around the remainder of an unrolled loop
            inner.add(min(around, key=lambda span: span[1] - span[0]))
    return [Counter(opcode for opcode, _ in lines[begin:end]) for begin, end in sorted(inner)]


def accesses(loop):
    """Global accesses of a loop by kind and width in bits, cache hints left out."""
    found = Counter()
    for opcode, count in loop.items():
        if opcode.startswith(("LDG", "STG")):
            width = re.search(r"\.(128|64|U16|U8)(?:\.|$)", opcode)
            found[opcode[:3], {"128": 128, "64": 64, "U16": 16, "U8": 8}[width.group(1)] if width else 32] += count
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mix", REGISTERS, ids=lambda mix: "-".join(dtype.name for dtype in mix))
def test_update_code(target, mix, tmp_path, record_property):
    kernel = update(target, mix)
    lines, registers = disassemble(kernel.asm["cubin"], tmp_path)
    record_property("registers", registers)
    assert registers <= REGISTERS[mix]
    assert not [opcode for opcode, _ in lines if opcode.startswith(("LDL", "STL"))], "values spilled to memory"
    assert kernel.metadata.shared == 0, "streams are rearranged through shared memory"
    without, amsgrad = sorted(streaming_loops(lines), key=lambda loop: accesses(loop).total())
    wide = {dtype: 128 if dtype == F32 or F32 not in mix else 64 for dtype in mix}
    param, grad, state = mix
    loads = [("LDG", wide[param]), ("LDG", wide[grad]), *[("LDG", wide[state])] * 2]
    stores = [("STG", wide[param]), *[("STG", wide[state])] * 2]
    assert accesses(without) == Counter(loads + stores), "one access per stream and thread"
    assert accesses(amsgrad) == Counter([*loads, *stores, ("LDG", wide[state]), ("STG", wide[state])])
    for loop in (without, amsgrad):
        assert not [op for op in loop if re.match(r"D(ADD|MUL|FMA|SETP)|F2F\S*64", op)], "float64 in the element loop"


def test_update_arithmetic():
    ptx = update(90, (F32, F32, F32)).asm["ptx"]
    roots = {*re.findall(r"sqrt\.\S+f32", ptx)}
    assert roots and roots <= {"sqrt.rn.f32", "sqrt.rn.ftz.f32"}  # Triton 3.5 flushes subnormals: below 1e-19 of a root
    assert re.search(r"max\.NaN\.f32", ptx), "amsgrad drops NaN"
    assert "cvt.rn.bf16" in update(90, (BF16, BF16, BF16)).asm["ptx"], "bf16 is not rounded to nearest even"
    for root in re.findall(r"(?:sqrt|div)\S*f64", update(90, (F64, F64, F64)).asm["ptx"]):
        assert root in ("sqrt.rn.f64", "div.rn.f64")


@pytest.mark.parametrize("mix", sorted(MIXES), ids=lambda mix: "-".join(dtype.name for dtype in mix))
def test_every_mix_compiles(mix, tmp_path):
    lines, _ = disassemble(update(90, mix).asm["cubin"], tmp_path)
    assert not [opcode for opcode, _ in lines if opcode.startswith(("LDL", "STL"))]
    assert update(90, mix).metadata.shared == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_measure_code(target, dtype, tmp_path, record_property):
    block, tail = blocks([dtype])
    constants = {"G": TYPES[dtype], "CHUNK": TritonBackend.chunk_size, "BLOCK": block, "TAIL": tail}
    kernel = compiled(triton_elements.measure_kernel, target, STREAM_OPTIONS, **constants)
    lines, registers = disassemble(kernel.asm["cubin"], tmp_path)
    record_property("registers", registers)
    assert registers <= 48
    assert not [opcode for opcode, _ in lines if opcode.startswith(("LDL", "STL"))]
    loops = streaming_loops(lines)
    assert loops and all(accesses(loop).keys() == {("LDG", 128)} for loop in loops)
    assert any(opcode.startswith("DFMA") for loop in loops for opcode in loop), "squares are not summed in float64"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", CONTROL_KERNELS, ids=lambda kernel: kernel.__name__)
def test_control_is_exact_float64(kernel, target, tmp_path):
    """No multiply-add but those inside division and square root, which are rounded correctly."""
    ptx = control(target, kernel).asm["ptx"]
    assert not re.search(r"\bfma\.|\bmad\.\S*f", ptx)
    assert not re.search(r"\b(add|sub|mul)\.f64", ptx), "without .rn the assembler may contract"
    assert {*re.findall(r"\b(?:div|sqrt|rcp)\.\S+", ptx)} <= {"div.rn.f64", "sqrt.rn.f64"}
    assert not re.search(r"cvt\.f64\.f32|cvt\.rn\.f32\.f64", ptx), "a value passes through float32"
    # What remains when both are replaced by single instructions must hold no multiply-add at all.
    plain = ptx.replace("div.rn.f64", "add.rn.f64").replace("sqrt.rn.f64", "neg.f64")
    source, cubin = tmp_path / "plain.ptx", tmp_path / "plain.cubin"
    source.write_text(plain)
    newest = TOOLS / "ptxas-blackwell"
    assembler = newest if newest.exists() else TOOLS / "ptxas"
    gpu_name = re.search(r"\.target (sm_\w+)", ptx).group(1)
    subprocess.run([assembler, f"--gpu-name={gpu_name}", source, "-o", cubin], check=True)
    lines, _ = disassemble(cubin.read_bytes(), tmp_path)
    assert not [opcode for opcode, _ in lines if opcode.startswith("DFMA")]


def test_control_constants():
    def literal(value):
        return f"0d{struct.pack('>d', value).hex().upper()}"

    decide = control(90, triton_control.decide_kernel).asm["ptx"]
    assert literal(1e-6) in decide
    allowed = {literal(value) for value in (0.0, 1.0, -1.0, float("inf"), -float("inf"))}
    commit = control(90, triton_control.commit_kernel).asm["ptx"]
    assert {*re.findall(r"0d[0-9A-F]{16}", commit)} <= allowed


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_no_argument_value_recompiles(kernel):
    """Triton compiles anew for integers equal to 1 or divisible by 16, and for aligned pointers, unless told not to."""
    assert [p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize)] == []


def test_says_where_it_runs():
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
