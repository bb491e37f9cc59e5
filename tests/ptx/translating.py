"""Functions of a module as lists of blocks that Python runs, each translated when it is first needed."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from ptx import Fault, bits, computing, formats, moving, rounding
from ptx.flow import flow_of, is_together
from ptx.operands import BlockWriter
from ptx.parsing import Function, Instruction, Module, Variable
from ptx.rounding import MACHINE, Rounding

TRANSLATIONS = computing.TRANSLATIONS | bits.TRANSLATIONS | moving.TRANSLATIONS
NAMES = formats.NAMES | {
    "np": np,
    "shift_left": formats.shift_left,
    "shift_right": formats.shift_right,
    "to_bf16": formats.to_bf16,
    "to_f16": formats.to_f16,
    "to_integer": formats.to_integer,
    "permuted": formats.permuted,
    "divide_integers": formats.divide_integers,
}
GAP = 16  # bytes between variables in shared memory, which nobody may touch


class Translated:
    """A function's blocks: instructions, and what runs them."""

    def __init__(self, function: Function, shared: dict[str, Variable], names: dict[str, object]) -> None:
        self.function = function
        self.flow = flow_of(function)
        self.shared = shared if function.is_kernel else {}
        self.offsets, self.shared_size = _layout(self.shared)
        self.registers: dict[str, int] = {register: k for k, register in enumerate(sorted(self.flow.crossing))}
        self._names = names
        self._code = [
            block[0] if is_together(block[0]) else self._translate(block) for block in self.flow.blocks
        ]  # compiled when it is first run; but what is unknown is refused wherever it stands

    def code(self, number: int) -> Callable | Instruction:
        """A block as a function of (run, registers, threads), or the one instruction that threads do together."""
        found = self._code[number]
        if isinstance(found, BlockWriter):
            found = self._code[number] = found.finish(number, self._names)
        return found

    def _translate(self, block: list[Instruction]) -> BlockWriter:
        writer = BlockWriter(self)
        for instruction in block:
            translate = TRANSLATIONS.get(instruction.parts[0])
            if translate is None or (instruction.predicate and translate is not moving.branch):
                raise Fault(f"unknown {instruction}")
            translate(writer, instruction)
        return writer

    def index(self, register: str) -> int:
        """Where `running.Frame` keeps a register."""
        return self.registers[register]

    def is_kernel_parameter(self, symbol: str) -> bool:
        return self.function.is_kernel and symbol in self.function.parameters

    def address(self, symbol: str) -> int:
        """Of the kernel's parameter, or of a variable in shared memory, in its own space."""
        if self.is_kernel_parameter(symbol):
            return 0
        if symbol not in self.offsets:
            raise Fault(f"{self.function.name}: unknown operand {symbol}")
        return self.offsets[symbol]


class Program:
    """A module to run, with one way of rounding.

    Attributes:
        executed: how often each block was run, by function and number.
    """

    def __init__(self, text: str, rounding: Rounding = MACHINE) -> None:
        self.module = Module(text)
        self.rounding = rounding
        self.executed: Counter[tuple[str, int]] = Counter()
        self._translated: dict[str, Translated] = {}

    def translated(self, name: str) -> Translated:
        if name not in self._translated:
            function = self.module.function(name)
            names = NAMES | rounding.names(self.rounding)
            self._translated[name] = Translated(function, self.module.shared | function.shared, names)
        return self._translated[name]

    def coverage_by_block(self) -> dict[str, tuple[dict[int, int], int]]:
        """For every function that was called, the instructions of each block that was executed, and of all blocks."""
        return {
            name: (
                {k: len(block) for k, block in enumerate(found.flow.blocks) if self.executed[name, k]},
                len(found.function.instructions),
            )
            for name, found in self._translated.items()
        }

    def coverage(self) -> dict[str, tuple[int, int]]:
        """For every function that was called, how many instructions were executed, of how many."""
        return {name: (sum(blocks.values()), total) for name, (blocks, total) in self.coverage_by_block().items()}


def _layout(variables: dict[str, Variable]) -> tuple[dict[str, int], int]:
    """Offsets of variables in shared memory, and how much of it they take."""
    end, offsets = 0, {}
    for name, variable in variables.items():
        align = max(variable.align, GAP)
        offsets[name] = -(-end // align) * align
        end = offsets[name] + variable.size + GAP
    return offsets, -(-end // GAP) * GAP
