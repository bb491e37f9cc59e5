"""Instructions that move: between registers and memory, from block to block, into functions and out of them."""

from ptx.formats import width
from ptx.operands import BlockWriter, address_parts, expect
from ptx.parsing import Instruction, listed

SHARED_WINDOW = 1 << 60  # where generic addresses see shared memory
SPACES = ("global", "shared", "param")
VECTORS = {"v2": 2, "v4": 4}
KNOWN = {"ld", "st", "volatile", "nc", *SPACES, *VECTORS}


def move(block: BlockWriter, ins: Instruction) -> None:
    """mov, also into the parts of a register, and from them"""
    target, source = ins.operands
    kind = ins.parts[-1]
    expect(len(ins.parts) == 2, ins)
    if target.startswith("{"):
        _take_apart(block, listed(target), source)
    elif source.startswith("{"):
        _put_together(block, target, listed(source))
    elif kind == "pred":
        block.set(target, block.value(source, kind))
    else:
        block.set_extended(target, block.bits(source, width(kind)), f"b{width(kind)}")


def _take_apart(block: BlockWriter, targets: list[str], source: str) -> None:
    bits = block.function.width(targets[0])
    whole = bits * len(targets)
    value = block.bits(source, whole)
    for k, target in enumerate(targets):
        block.set(target, f"({value} >> u{whole}({bits * k})).astype(u{bits})")


def _put_together(block: BlockWriter, target: str, sources: list[str]) -> None:
    whole = block.function.width(target)
    bits = whole // len(sources)
    parts = [f"({block.bits(s, bits)}.astype(u{whole}) << u{whole}({bits * k}))" for k, s in enumerate(sources)]
    block.set(target, " | ".join(parts))


def convert_address(block: BlockWriter, ins: Instruction) -> None:
    """cvta: global addresses are generic ones, shared ones lie in a window of theirs"""
    to_space = ins.parts[1] == "to"
    space = ins.parts[2 if to_space else 1]
    expect(space in ("global", "shared"), ins)
    source = block.bits(ins.operands[1], 64)
    moved = f"{source} {'-' if to_space else '+'} u64({SHARED_WINDOW})"
    block.set(ins.operands[0], moved if space == "shared" else source)


def load_or_store(block: BlockWriter, ins: Instruction) -> None:
    """ld, st"""
    opcode, *modes, kind = ins.parts
    expect(set(modes) <= KNOWN and len(ins.operands) == 2, ins)
    space = next((mode for mode in modes if mode in SPACES), "generic")
    count = next((VECTORS[mode] for mode in modes if mode in VECTORS), 1)
    where, what = ins.operands if opcode == "st" else reversed(ins.operands)
    values = listed(what)
    base, offset = address_parts(ins, where)
    expect(len(values) == count, ins)
    if space == "param" and not base.startswith("%") and not block.owner.is_kernel_parameter(base):
        expect(offset == 0 and count == 1, ins)
        _pass_on(block, opcode, base, values[0], width(kind))
        return
    bits = 32 if space == "shared" else 64
    address = f"{block.bits(base, bits)} + u{bits}({offset & ((1 << bits) - 1)})"
    access = f"{space!r}, threads, {address}, {width(kind) // 8}"
    site = f"{opcode!r}, {ins.line}"
    if opcode == "st":
        stored = "".join(f"{block.bits(value, width(kind))}, " for value in values)
        block.write(f"run.store({access}, ({stored}), {site})")
    else:
        block.write(f"loaded = run.load({access}, {count}, {site})")
        for k, value in enumerate(values):
            block.set_extended(value, f"loaded[{k}]", kind.replace("f", "b"))


def _pass_on(block: BlockWriter, opcode: str, name: str, value: str, bits: int) -> None:
    """Arguments and results of calls, which have no address."""
    function = block.function
    if opcode == "st" and name in function.arguments:
        block.write(f"a_{name} = {block.bits(value, bits)}")
    elif opcode == "st":
        block.write(f"run.set_result(threads, {block.bits(value, bits)})")
    elif name in function.arguments:
        block.set(value, f"a_{name}")
    else:
        block.set(value, f"run.arguments[{list(function.parameters).index(name)}].take(threads)")


def add_atomically(block: BlockWriter, ins: Instruction) -> None:
    """atom; one that releases or acquires is to what a thread does as a fence before it or behind it"""
    *modes, space, operation, kind = ins.parts[1:]
    order = modes[0] if modes else "relaxed"
    expect([space, operation, kind] == ["global", "add", "u32"] and modes in ([], [order, "gpu"]), ins)
    expect(order in ("relaxed", "acquire", "release", "acq_rel"), ins)
    base, offset = address_parts(ins, ins.operands[1])
    address = f"{block.bits(base, 64)} + u64({offset})"
    if order in ("release", "acq_rel"):
        block.write("run.fence(threads)")
    block.set(ins.operands[0], f"run.add_atomically(threads, {address}, {block.bits(ins.operands[2], 32)}, {ins.line})")
    if order in ("acquire", "acq_rel"):
        block.write("run.fence(threads)")


def fence(block: BlockWriter, ins: Instruction) -> None:
    """membar"""
    expect(ins.parts[1:] in (["gl"], ["sys"]), ins)
    block.write("run.fence(threads)")


def call(block: BlockWriter, ins: Instruction) -> None:
    """call, of a function with a result"""
    expect(len(ins.operands) == 3, ins)
    result, name, arguments = ins.operands
    passed = ", ".join(f"a_{argument}" for argument in listed(arguments))
    block.write(f"a_{listed(result)[0]} = run.call({name!r}, threads, [{passed}])")


def branch(block: BlockWriter, ins: Instruction) -> None:
    """bra"""
    taken = block.read(ins.predicate) if ins.predicate else None
    block.jump = (taken, ins.negated, block.owner.flow.targets[ins.operands[0]])


def leave(block: BlockWriter, ins: Instruction) -> None:
    """ret, exit"""
    block.leaves = True


TRANSLATIONS = {
    **dict.fromkeys(("ld", "st"), load_or_store),
    **dict.fromkeys(("ret", "exit"), leave),
    "mov": move,
    "cvta": convert_address,
    "atom": add_atomically,
    "membar": fence,
    "call": call,
    "bra": branch,
}
