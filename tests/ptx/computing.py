"""Instructions that compute: arithmetic, logic, comparison, conversion."""

from ptx.formats import is_float, is_signed, width
from ptx.operands import BlockWriter, expect
from ptx.parsing import Instruction

SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def arithmetic(block: BlockWriter, ins: Instruction) -> None:
    """add, sub, mul, div"""
    kind = ins.parts[-1]
    if is_float(kind):
        _float_arithmetic(block, ins)
    elif ins.parts[0] == "mul":
        block.set(ins.operands[0], _product(block, ins))
    elif ins.parts[0] == "div":
        expect(ins.parts == ["div", kind], ins)
        a, b = (block.value(operand, kind) for operand in ins.operands[1:])
        block.set(ins.operands[0], f"{a} // {b}" if kind.startswith("u") else f"divide_integers({a}, {b})")
    else:
        expect(len(ins.parts) == 2, ins)
        a, b = (block.bits(operand, width(kind)) for operand in ins.operands[1:])
        block.set(ins.operands[0], f"{a} {SIGNS[ins.parts[0]]} {b}")


def _float_arithmetic(block: BlockWriter, ins: Instruction) -> None:
    opcode, *modes, kind = ins.parts
    a, b = (block.value(operand, kind) for operand in ins.operands[1:])
    if opcode == "div" and modes in (["full"], ["approx", "ftz"]):
        expect(kind == "f32", ins)
        block.set(ins.operands[0], f"divide({a}, {b})" if modes == ["full"] else f"flushed(divide({a}, flushed({b})))")
    elif modes == ["rz"]:
        expect(ins.opcode == "add.rz.f32", ins)
        block.set(ins.operands[0], f"of_f32(add_toward_zero({a}, {b}))")
    elif modes == ["rn", "ftz"]:
        expect(ins.opcode == "div.rn.ftz.f32", ins)
        block.set(ins.operands[0], f"flushed(of_f32(flushed({a}) / flushed({b})))")
    else:
        expect(modes == ["rn"] or (modes == [] and opcode != "div"), ins)
        block.set(ins.operands[0], f"of_{kind}({a} {SIGNS[opcode]} {b})")


def _product(block: BlockWriter, ins: Instruction) -> str:
    """Of integers: its lower half, or all of it."""
    kind = ins.parts[-1]
    bits = width(kind)
    if ins.parts[1] == "lo":
        return f"{block.bits(ins.operands[1], bits)} * {block.bits(ins.operands[2], bits)}"
    expect(ins.parts[1] == "wide", ins)
    wide = f"{'i' if is_signed(kind) else 'u'}{2 * bits}"
    a, b = (block.value(operand, kind) for operand in ins.operands[1:3])
    return f"({a}.astype({wide}) * {b}.astype({wide})).view(u{2 * bits})"


def multiply_add(block: BlockWriter, ins: Instruction) -> None:
    """mad"""
    bits = width(ins.parts[-1]) * (2 if ins.parts[1] == "wide" else 1)
    block.set(ins.operands[0], f"{_product(block, ins)} + {block.bits(ins.operands[3], bits)}")


def fused(block: BlockWriter, ins: Instruction) -> None:
    """fma"""
    expect(ins.parts[1:-1] == ["rn"], ins)
    kind = ins.parts[-1]
    a, b, c = (block.value(operand, kind) for operand in ins.operands[1:])
    block.set(ins.operands[0], f"fma{width(kind)}({a}, {b}, {c})")


def root_or_inverse(block: BlockWriter, ins: Instruction) -> None:
    """sqrt, rcp"""
    opcode, *modes, kind = ins.parts
    value = block.value(ins.operands[1], kind)
    if ins.opcode == "rcp.approx.ftz.f64":
        block.set(ins.operands[0], f"invert({value})")
        return
    if modes[0] == "approx":
        expect(kind == "f32" and modes[1:] in ([], ["ftz"]), ins)
        approximate = "take_root" if opcode == "sqrt" else "invert32"
        flushed = f"flushed({approximate}(flushed({value})))" if "ftz" in modes else f"{approximate}({value})"
        block.set(ins.operands[0], flushed)
        return
    expect(modes == ["rn"] or ins.opcode == "sqrt.rn.ftz.f32", ins)
    if modes != ["rn"]:
        block.set(ins.operands[0], f"flushed(of_f32(np.sqrt(flushed({value}))))")
        return
    exact = f"np.sqrt({value})" if opcode == "sqrt" else f"f{width(kind)}(1.0) / {value}"
    block.set(ins.operands[0], f"of_{kind}({exact})")


def sign(block: BlockWriter, ins: Instruction) -> None:
    """abs, neg"""
    opcode, *modes, kind = ins.parts
    expect(modes == [] or ins.opcode == "abs.ftz.f32", ins)
    bits = width(kind)
    value, top = block.bits(ins.operands[1], bits), 1 << (bits - 1)
    if modes:
        changed = f"flushed({value} & u32({top - 1}))"
    elif is_float(kind):
        changed = f"{value} & u{bits}({top - 1})" if opcode == "abs" else f"{value} ^ u{bits}({top})"
    else:
        expect(opcode == "neg", ins)
        changed = f"u{bits}(0) - {value}"
    block.set(ins.operands[0], changed)


def copy_sign(block: BlockWriter, ins: Instruction) -> None:
    """copysign: that of the first to the second"""
    expect(ins.parts == ["copysign", "f32"], ins)
    of, to = (block.bits(operand, 32) for operand in ins.operands[1:])
    block.set(ins.operands[0], f"({to} & u32(0x7fffffff)) | ({of} & u32(0x80000000))")


def smaller_or_larger(block: BlockWriter, ins: Instruction) -> None:
    """min, max; of a number and a NaN, the number, unless asked for the NaN"""
    opcode, *modes, kind = ins.parts
    expect(modes == [] or (modes == ["NaN"] and is_float(kind)), ins)
    a, b = (block.value(operand, kind) for operand in ins.operands[1:])
    if is_float(kind):
        name = f"{opcode}imum" if modes else f"f{opcode}"
        block.set(ins.operands[0], f"of_{kind}(np.{name}({a}, {b}))")
    else:
        block.set(ins.operands[0], f"np.{opcode}imum({a}, {b}).view(u{width(kind)})")


def logic(block: BlockWriter, ins: Instruction) -> None:
    """and, or, xor, not"""
    opcode, kind = ins.parts
    values = [block.value(operand, kind) for operand in ins.operands[1:]]
    block.set(ins.operands[0], f"~{values[0]}" if opcode == "not" else f" {SIGNS[opcode]} ".join(values))


def shift(block: BlockWriter, ins: Instruction) -> None:
    """shl, shr"""
    opcode, kind = ins.parts
    bits = width(kind)
    integer = f"{'i' if is_signed(kind) else 'u'}{bits}"
    value, distance = block.value(ins.operands[1], kind), ins.operands[2]
    if distance.isdigit() and int(distance) < bits:
        sign = "<<" if opcode == "shl" else ">>"
        block.set(ins.operands[0], f"({value} {sign} {integer}({distance})).view(u{bits})")
    else:
        way = "shift_left" if opcode == "shl" else "shift_right"
        block.set(ins.operands[0], f"{way}({value}, {block.bits(distance, 32)}, {integer})")


def compare(block: BlockWriter, ins: Instruction) -> None:
    """setp; a pair with a NaN is unordered, and only what has u or nan in its name is true of it"""
    expect(len(ins.parts) == 3, ins)
    how, kind = ins.parts[1:]
    a, b = (block.value(operand, kind) for operand in ins.operands[1:])
    unordered = f"(np.isnan({a}) | np.isnan({b}))"
    if not is_float(kind):
        how = UNSIGNED_NAMES.get(how, how)
        expect(how in COMPARISONS, ins)
        result = f"{a} {COMPARISONS[how]} {b}"
    elif how in ("nan", "num"):
        result = unordered if how == "nan" else f"~{unordered}"
    elif how == "ne":
        result = f"({a} != {b}) & ~{unordered}"
    elif how in COMPARISONS:
        result = f"{a} {COMPARISONS[how]} {b}"
    else:
        expect(how.endswith("u") and how[:-1] in COMPARISONS, ins)
        result = f"({a} {COMPARISONS[how[:-1]]} {b}) | {unordered}"
    block.set(ins.operands[0], result)


def select(block: BlockWriter, ins: Instruction) -> None:
    """selp"""
    kind = ins.parts[-1]
    yes, no = (block.bits(operand, width(kind)) for operand in ins.operands[1:3])
    block.set_extended(ins.operands[0], f"np.where({block.read(ins.operands[3])}, {yes}, {no})", f"b{width(kind)}")


def convert(block: BlockWriter, ins: Instruction) -> None:
    """cvt"""
    _, *modes, to, of = ins.parts
    target = ins.operands[0]
    value = block.value(ins.operands[1], of)
    if to in ("bf16", "f16"):
        expect(modes == ["rn"] and of == "f32", ins)
        block.set(target, f"to_{to}({value})")
    elif is_float(to) and to == of and modes == ["sat"]:
        block.set(target, f"of_{to}(saturated({value}))")
    elif is_float(to) and to == of:
        expect(modes == ["rzi"], ins)
        block.set(target, f"np.trunc({value}).view(u{width(to)})")
    elif is_float(to):
        widens = is_float(of) and width(to) > width(of)
        expect(modes == ([] if widens else ["rn"]), ins)
        block.set(target, f"of_{to}({value}.astype(f{width(to)}))")
    elif is_float(of):
        expect(modes == ["rzi"] and is_signed(to), ins)
        of_nan = -(1 << (width(to) - 1)) if of == "f64" else 0
        block.set(target, f"to_integer({value}, i{width(to)}, {of_nan})")
    else:
        expect(modes == [], ins)
        kind = f"{'i' if is_signed(to) else 'u'}{width(to)}"
        block.set_extended(target, f"{value}.astype({kind}).view(u{width(to)})", to)


TRANSLATIONS = {
    **dict.fromkeys(("add", "sub", "mul", "div"), arithmetic),
    **dict.fromkeys(("sqrt", "rcp"), root_or_inverse),
    **dict.fromkeys(("abs", "neg"), sign),
    "copysign": copy_sign,
    **dict.fromkeys(("min", "max"), smaller_or_larger),
    **dict.fromkeys(("and", "or", "xor", "not"), logic),
    **dict.fromkeys(("shl", "shr"), shift),
    "mad": multiply_add,
    "fma": fused,
    "setp": compare,
    "selp": select,
    "cvt": convert,
}
