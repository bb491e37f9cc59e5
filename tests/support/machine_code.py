"""Reading the machine code of NVIDIA kernels, with the disassemblers that come with Triton; no GPU is needed.

Bytes per parameter are counted from the instructions of a loop: what its loads and stores move, over the elements that
one turn of it updates, which are as many as its square roots (one per element in A6; slow paths lie outside the loop).
"""

import fcntl
import importlib.util
import json
import pickle
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

import greedylr_fused
from greedylr_fused.tensors.formats import MIXES, DType

triton = pytest.importorskip("triton", reason="triton, which brings the disassemblers, is not installed")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
needs_tools = pytest.mark.skipif(
    not all((TOOLS / tool).exists() for tool in ("nvdisasm", "cuobjdump")),
    reason="this build of triton has no nvdisasm or no cuobjdump",
)
TARGETS = [80, 90, 100]
CHOSEN = 90  # of which all is checked; of the others by `make test-all`
SECTOR = 32  # bytes, the smallest piece of memory that moves
BYTES = {DType.F32: 4, DType.F64: 8, DType.BF16: 2, DType.F16: 2}
MASTERS = {DType.BF16_R16: 2, DType.BF16_R8: 1}  # bytes of the remainder beside a bfloat16 parameter

Mix = tuple[DType, DType, DType]
Loop = Counter[str]  # instructions by opcode
Lines = tuple[tuple[str, str], ...]  # label or opcode, operands


def built_module() -> Path:
    """The compiled `_cuda`; skips the test where there is none, with the reason that its build gave."""
    built = importlib.util.find_spec("greedylr_fused._cuda")
    if built is None or built.origin is None:
        report = Path(greedylr_fused.__file__).parent / "_build.json"
        reasons = json.loads(report.read_text()) if report.exists() else {}
        pytest.skip(f"greedylr_fused._cuda is not built: {reasons.get('_cuda', {}).get('reason', 'never tried')}")
    return Path(built.origin)


def mix_name(mix: Mix) -> str:
    return "-".join(dtype.name for dtype in mix)


def marks(target: int) -> tuple[pytest.MarkDecorator, ...]:
    return () if target == CHOSEN else (pytest.mark.exhaustive,)


each_target = pytest.mark.parametrize("target", [pytest.param(target, marks=marks(target)) for target in TARGETS])


def each(cases: list[tuple[int, Mix]], few: Collection[Mix] = MIXES) -> pytest.MarkDecorator:
    """A test of each target and mix; without --exhaustive of few mixes."""
    found = []
    for target, mix in cases:
        rare = () if mix in few else (pytest.mark.exhaustive,)
        found.append(pytest.param(target, mix, marks=marks(target) or rare, id=f"{target}-{mix_name(mix)}"))
    return pytest.mark.parametrize(("target", "mix"), found)


@dataclass(frozen=True)
class Code:
    """One kernel: its lines, and registers per thread."""

    lines: Lines
    registers: int

    def spills(self) -> list[str]:
        return [f"{opcode} {rest}" for opcode, rest in self.lines if opcode.startswith(("LDL", "STL"))]


def disassemble(cubin: Path) -> dict[str, Code]:
    """The kernels in a file of machine code, by symbol."""
    found = {name: int(registers) for name, registers in _usage(cubin)}
    text = _output("nvdisasm", "-c", cubin)
    sections = re.split(r"^\.text\.(\S+):$", text, flags=re.M)
    codes = {}
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        lines = []
        for line in body.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                lines.append((label[1], ""))
            elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
                lines.append((code[1], code[2]))
        assert len(lines) > 10, body[:2000]
        codes[name] = Code(tuple(lines), found[name])
    assert codes, text[:2000]
    return codes


def disassemble_once(cubin: Path, folder: Path) -> dict[str, Code]:
    """The same, kept in a folder that the processes of a run share."""
    kept = folder / f"{cubin.name}.pickle"
    with open(folder / f"{cubin.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(disassemble(cubin)))
    return pickle.loads(kept.read_bytes())


def update_kernels(codes: dict[str, Code]) -> dict[Mix, Code]:
    """By mix. The types are template arguments, numbered as `DType`."""
    found = {}
    for symbol, code in codes.items():
        if "update_kernel" in symbol:
            mix = re.findall(r"L(?:NS\d?_5DTypeE|S\d*_)(\d)E", symbol)
            found[tuple(DType(int(number)) for number in mix)] = code
    return found


def _usage(cubin: Path) -> list[tuple[str, str]]:
    return re.findall(r"Function (\S+):\s+REG:(\d+)", _output("cuobjdump", "-res-usage", cubin))


def _output(tool: str, *arguments: object) -> str:
    command = [str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def main_loops(code: Code) -> list[Loop]:
    """The innermost loops that load 16 bytes at a time, in order."""
    return inner_loops(code, r"LDG?\.\S*128")


def inner_loops(code: Code, pattern: str) -> list[Loop]:
    """The loops without a loop in them that have such an instruction, in order."""
    return [Counter(opcode for opcode, _ in lines) for lines in loop_lines(code, pattern)]


def loop_lines(code: Code, pattern: str) -> list[Lines]:
    """The same as lines of code."""
    labels = {name: i for i, (name, _) in enumerate(code.lines) if name.startswith(".L")}
    spans = []
    for end, (opcode, rest) in enumerate(code.lines):
        target = re.search(r"\.L_x_\d+", rest)
        if opcode.startswith("BRA") and target and labels.get(target[0], end) < end:
            spans.append((labels[target[0]], end))
    inner = set()
    for i, (opcode, _) in enumerate(code.lines):
        around = [span for span in spans if span[0] < i < span[1]]
        if re.match(pattern, opcode) and around:
            inner.add(min(around, key=lambda span: span[1] - span[0]))
    inner = {one for one in inner if not any(one[0] < other[0] and other[1] < one[1] for other in inner)}
    return [code.lines[begin:end] for begin, end in sorted(inner)]


def accesses(loop: Loop) -> Counter[tuple[str, int]]:
    """Global accesses by kind ("LDG", "STG") and width in bits, cache hints left out."""
    found: Counter[tuple[str, int]] = Counter()
    for opcode, count in loop.items():
        if re.match(r"(LDG|STG|LD|ST)\.", opcode):
            width = re.search(r"\.(?:[US])?(256|128|64|16|8)(?:\.|$)", opcode)
            found[opcode[:3], int(width[1]) if width else 32] += count
    return found


def moved(loop: Loop) -> int:
    """Bytes that one turn of the loop loads and stores per thread."""
    return sum(bits // 8 * count for (_, bits), count in accesses(loop).items())


def in_sectors(lines: Lines) -> int:
    """Bytes of the sectors that one turn of a loop touches per thread. The lanes of a warp have neighbouring pieces of
    each stream, as long as what one of them accesses from one address on; an access that is shorter leaves gaps, and
    where the gaps are shorter than a sector it touches all sectors of the warp's pieces.
    """
    pieces: dict[tuple[str, str, int], list[int]] = {}
    version: Counter[str] = Counter()  # of a register's value
    for opcode, rest in lines:
        if found := re.match(r"(LDG|STG)\.", opcode):
            base = re.search(r"\[(R\d+)", rest)[1]
            ((_, bits),) = accesses(Counter([opcode]))
            pieces.setdefault((found[1], base, version[base]), []).append(bits // 8)
        if not opcode.startswith("STG") and (target := re.match(r"\s*(R\d+)", rest)):
            version[target[1]] += 1
    return sum(max(size, min(sum(piece), SECTOR)) for piece in pieces.values() for size in piece)


def matching(loop: Loop, pattern: str) -> int:
    return sum(count for opcode, count in loop.items() if re.match(pattern, opcode))


def elements(loop: Loop) -> int:
    """Elements that one turn of the loop updates per thread."""
    return matching(loop, r"MUFU\.(RSQ|SQRT)")


def float64(loop: Loop) -> list[str]:
    """Arithmetic in float64 and conversions from or to it."""
    return [opcode for opcode in loop if re.match(r"D(ADD|MUL|FMA|SETP|MNMX)|[FI]2[FI]\S*F64|MUFU\S*64", opcode)]


def streams(mix: Mix) -> tuple[int, int, int, int]:
    """Bytes of an element's parameter, gradient, moment and remainder."""
    param, grad, state = mix
    return BYTES.get(param, 2), BYTES[grad], BYTES.get(state, 1), MASTERS.get(param, 0)


def floor(mix: Mix, *, amsgrad: bool = False) -> float:
    """Bytes per parameter that an update cannot do without: each stream read, all but the gradient written; of 8-bit
    moments two scales of 4 bytes for 64 elements, too, both ways.
    """
    param, grad, state, remainder = streams(mix)
    scales = 4 * 4 / 64 if mix[2] == DType.Q8 else 0
    return 2 * param + grad + (6 if amsgrad else 4) * state + 2 * remainder + scales


def check_update_loop(loop: Loop, mix: Mix) -> None:
    """What holds for a loop over elements, whoever compiled it."""
    assert matching(loop, "MUFU") == 2 * elements(loop), "more than a root and a quotient per element"
    assert matching(loop, r"MUFU\.(EX2|LG2|SIN|COS)|BAR|ATOM|SHFL") == 0
    assert DType.F64 in mix or not float64(loop), "float64 in a loop over elements"


def check_measure_loop(loop: Loop, *, l1: bool) -> int:
    """What holds for a loop that adds up gradients in float64. Returns how many elements one turn adds."""
    added = matching(loop, "DFMA")  # one per element
    assert matching(loop, "DADD") == (added if l1 else 0), "the absolute values, which only L1 is to pay for"
    assert matching(loop, "DMUL") in (0, added), "more than one exact product per element, of its bits"
    assert added and matching(loop, "MUFU|BAR|LDS|STS|SHFL|[FI]2") == 0
    return added


def check_backup_code(code: Code, record_property: Callable[[str, object], None]) -> None:
    """What holds for the copies of a backup: four accesses of 16 bytes each way are under way in the main loop, and a
    launch that is asked for nothing ends with one load.
    """
    record_property("registers", code.registers)
    assert code.registers <= 64 and not code.spills()
    loops = loop_lines(code, r"LDG?\.\S*128")
    orders = [[opcode[:3] for opcode, _ in lines if re.match("LDG|STG", opcode)] for lines in loops]
    assert any(order[:8] == ["LDG"] * 4 + ["STG"] * 4 for order in orders), orders
    assert all({bits for _, bits in accesses(loop)} == {128} for loop in main_loops(code))
    opcodes = [opcode for opcode, _ in code.lines]
    ends = next(i for i, opcode in enumerate(opcodes) if opcode == "EXIT")
    assert sum(opcode.startswith(("LDG", "LD.")) for opcode in opcodes[:ends]) == 1
    assert not any(re.match("BAR|ATOM|LDS|STS|SHFL", opcode) for opcode in opcodes)
