"""What LLVM writes for Triton's kernels, in the words of nvcc that this package knows."""

import re

PARAMETER = "all_parameters"  # one in place of many
REGISTERS = {"b16": "%lower %upper %left_out_32", "b32": "%moved %left_out_64", "pred": "%stores %inside"}
SIZES = {"u64": 8, "u32": 4}
#: In the order in which they apply. None changes what is computed.
WORDS = [
    (r"//[^\n]*", ""),
    (r"^\s*\.loc[^\n]*$", ""),
    (r"^\$L__(?:tmp|func_begin|func_end)\d+:", ""),  # for debuggers
    (r"\[ *(%?\w+)(?: *\+ *(-?\d+))? *\]", lambda found: f"[{found[1]}+{found[2] or 0}]"),
    (r"\{ \.reg \.b\d+ tmp; ([^}]*\}[^}]*)\}", r"\1"),
    (r"\bmov\.b(32|64)\s+(\{[^}]*\})", lambda found: _taken_apart(*found.groups())),
    (r"\.reg \.pred stores;", ""),
    (r"(?<![%\w])stores\b", "%stores"),
    (r"(0x[0-9a-fA-F]+)U", r"\1"),
    (r"shared::cta", "shared"),
    (r"\batom\.global\.gpu\.(\w+)\.", r"atom.\1.gpu.global."),
    (r"\bfence\.acq_rel\.(?:sys|gpu)", "membar.sys"),
    (r"\bdiv\.s64", "div.u64"),  # of indices, which are not negative
    (r"\bcvt\.f32\.bf16\s+(%\w+), (%\w+);", r"cvt.u32.u16 \1, \2; shl.b32 \1, \1, 16;"),
    (
        r"\bcvt\.rn\.bf16x2\.f32\s+(%\w+), (%\w+), (%\w+);",
        r"cvt.rn.bf16.f32 %upper, \2; cvt.rn.bf16.f32 %lower, \3; mov.b32 \1, {%lower, %upper};",
    ),
    (r"\bshfl\.sync\.bfly\.b32\s+(%\w+),", r"shfl.sync.bfly.b32 \1|%inside,"),
    (r"\bredux\.sync\.max\.s32\s+(%\w+), (%\w+), (%\w+);", lambda found: _largest_of_warp(*found.groups())),
    (r"\bbfe\.u32\s+(%\w+), (%\w+), (\d+), (\d+);", lambda found: _field(*found.groups())),
]


def _taken_apart(width: str, parts: str) -> str:
    return f"mov.b{width} " + re.sub(r"\b(?:tmp|_)\b", f"%left_out_{width}", parts)


def _largest_of_warp(target: str, source: str, lanes: str) -> str:
    steps = [
        f"shfl.sync.bfly.b32 %moved|%inside, {target}, {distance}, 31, {lanes}; max.s32 {target}, {target}, %moved;"
        for distance in (16, 8, 4, 2, 1)
    ]
    return f"mov.b32 {target}, {source}; {' '.join(steps)}"


def _field(target: str, source: str, first: str, count: str) -> str:
    return f"shr.u32 {target}, {source}, {first}; and.b32 {target}, {target}, {(1 << int(count)) - 1};"


def translated(text: str, shared: int) -> tuple[str, list[int]]:
    """A module of one kernel with `shared` bytes, and the sizes of its parameters in order."""
    header = re.search(r"\.visible \.entry (\w+)\(([^)]*)\)[^{]*\{", text)
    kinds = re.findall(r"\.param \.(\w+)(?: \.ptr \.global \.align \d+)? (\w+)", header[2])
    body = text[header.end() : text.index("\n}", header.end()) + 2]
    offset = 0
    for kind, name in kinds:
        offset = -(-offset // SIZES[kind]) * SIZES[kind]
        body = re.sub(rf"\[{name}\]", f"[{PARAMETER}+{offset}]", body)
        offset += SIZES[kind]
    for pattern, replacement in WORDS:
        body = re.sub(pattern, replacement, body, flags=re.M)
    body = _without_guards(body)
    head = f".shared .align 16 .b8 global_smem[{max(shared, 1)}];\n.visible .entry {header[1]}(\n"
    return f"{head}.param .align 8 .b8 {PARAMETER}[{offset}]\n)\n{{\n{_declared()}\n{body}", [
        SIZES[k] for k, _ in kinds
    ]


def _declared() -> str:
    return " ".join(f".reg .{kind} {name};" for kind, names in REGISTERS.items() for name in names.split())


def _without_guards(body: str) -> str:
    """Instructions under a predicate become ones that are jumped over."""
    count = 0

    def jumped(found):
        nonlocal count
        count += 1
        guard = f"@{'' if found[1] else '!'}{found[2]}"
        return f"{guard} bra $OVER_{count};\n{found[3]};\n$OVER_{count}:"

    return re.sub(r"@(!?)(%\w+)\s+((?!bra)[^;]*);", jumped, body)
