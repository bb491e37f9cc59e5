"""Operands of instructions as Python expressions, and the function of a basic block that they make up.

Translated code knows `run` (grid.Grid or running.Frame), `registers`, `threads` (the numbers of those that execute the
block), the types of `formats.NAMES` and the operations of `rounding.names` and `translating.NAMES`. A register's value
lies in the variable `v_NAME`: its bits for each thread, or one number where it is the same in all.
"""

import re
from collections.abc import Callable

from ptx import Fault
from ptx.formats import PREDICATE, is_float, is_signed, width
from ptx.parsing import Instruction

SPECIAL = {
    "%tid.x": "run.thread_of.take(threads)",
    "%ctaid.x": "run.block_of.take(threads)",
    "%ntid.x": "u32(run.block_size)",
    "%nctaid.x": "u32(run.grid_size)",
}
PREDICATES = {"0": "np.False_", "1": "np.True_", "-1": "np.True_"}


class BlockWriter:
    """Writes one block's function.

    Attributes:
        owner: the function it is of, a `translating.Translated`.
        jump: (predicate, negated, block) of the branch at its end, the predicate being None if it is always taken.
        leaves: whether the threads end with it.
    """

    def __init__(self, owner) -> None:
        self.owner = owner
        self.function = owner.function
        self.lines: list[str] = []
        self.known: set[str] = set()
        self.written: dict[str, None] = {}
        self.jump: tuple[str | None, bool, int] | None = None
        self.leaves = False

    def write(self, line: str) -> None:
        self.lines.append(line)

    def read(self, register: str) -> str:
        """Expression of a register's bits."""
        name = f"v_{register[1:]}"
        if register not in self.known:
            self.known.add(register)
            self.write(f"{name} = registers[{self.owner.index(register)}].take(threads)")
        return name

    def set(self, register: str, expression: str) -> None:
        """Give a register bits of its own width."""
        self.known.add(register)
        self.written[register] = None
        self.write(f"v_{register[1:]} = {expression}")

    def bits(self, operand: str, wanted: int) -> str:
        """Expression of an operand's lowest bits, with zeros above if it has fewer."""
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand.startswith("%"):
            has = self.function.width(operand)
            value = self.read(operand)
            return value if has in (wanted, PREDICATE) else f"{value}.astype(u{wanted})"
        if literal := re.fullmatch(r"0([fd])([0-9a-fA-F]+)", operand):
            return f"u{32 if literal[1] == 'f' else 64}(0x{literal[2]})"
        if literal := re.fullmatch(r"(-?\d+|0x[0-9a-fA-F]+)U?", operand):
            return f"u{wanted}({int(literal[1], 0) & ((1 << wanted) - 1)})"
        return f"u{wanted}({self.owner.address(operand)})"

    def value(self, operand: str, kind: str) -> str:
        """Expression of an operand as a number of a PTX type."""
        if kind == "pred":
            return PREDICATES.get(operand) or self.read(operand)
        bits = width(kind)
        expression = self.bits(operand, bits)
        if is_signed(kind):
            return f"{expression}.view(i{bits})"
        return f"{expression}.view(f{bits})" if is_float(kind) else expression

    def set_extended(self, register: str, expression: str, kind: str) -> None:
        """Give a register the bits of a type which may be narrower: with copies of the sign, or zeros, above."""
        has, bits = self.function.width(register), width(kind)
        if has == bits:
            self.set(register, expression)
        elif is_signed(kind):
            self.set(register, f"({expression}).view(i{bits}).astype(i{has}).view(u{has})")
        else:
            self.set(register, f"({expression}).astype(u{has})")

    def finish(self, number: int, names: dict[str, object]) -> Callable:
        """The function of this block, the `number`-th, over these global names."""
        lines = list(self.lines)
        for register in self.written:
            if register in self.owner.flow.crossing:
                lines.append(f"registers[{self.owner.index(register)}][threads] = v_{register[1:]}")
        predicate, negated, target = self.jump or (None, False, number + 1)
        if self.leaves:
            lines.append("run.leave(threads)")
        elif predicate is None:
            lines.append(f"run.at[threads] = {target}")
        else:
            taken, other = (number + 1, target) if negated else (target, number + 1)
            lines.append(f"run.at[threads] = np.where({predicate}, {taken}, {other})")
        source = "def block(run, registers, threads):\n" + "".join(f"    {line}\n" for line in lines)
        scope: dict[str, Callable] = {}
        exec(compile(source, f"<{self.function.name}, block {number}>", "exec"), names, scope)
        return scope["block"]


def expect(condition: bool, instruction: Instruction) -> None:
    """That an instruction is of a form which is known."""
    if not condition:
        raise Fault(f"unknown form of {instruction}")


def address_parts(instruction: Instruction, operand: str) -> tuple[str, int]:
    """Register or symbol, and offset, of `[base+offset]`."""
    found = re.fullmatch(r"\[([%$\w]+)(?:\+(-?\d+))?\]", operand)
    expect(found is not None, instruction)
    return found[1], int(found[2] or 0)
