"""Threads that run a function, each at a block of its own. Those which are at the same block run it at once."""

from collections import Counter

import numpy as np

from ptx import Fault
from ptx.formats import PREDICATE, UNSIGNED
from ptx.memory import UNWRITTEN
from ptx.parsing import Instruction
from ptx.rounding import host_pow
from ptx.translating import Program

ENDED = np.iinfo(np.int32).max  # the block of a thread that has returned


class Frame:
    """Some threads in a function.

    Attributes:
        arguments: what the function was called with, an array for each parameter.
        at: the block that each thread runs next.
        waiting: whether it waits there for others.
        registers: arrays over the threads, in the order of `Translated.registers`.
        result: bits of what the function returns.
    """

    def __init__(self, program: Program, name: str, count: int, arguments=()) -> None:
        self.program = program
        self.translated = program.translated(name)
        self.name = name
        self.count = count
        self.arguments = arguments
        self.at = np.zeros(count, np.int32)
        self.waiting = np.zeros(count, bool)
        self.result = unwritten(64, count)
        widths = [self.translated.function.width(register) for register in self.translated.registers]
        self.registers = [unwritten(width, count) for width in widths]

    def go(self) -> None:
        """Until all have ended."""
        translated, executed = self.translated, self.program.executed
        while True:
            ready = ~self.waiting & (self.at != ENDED)
            if not ready.any():
                self.check_ended()
                return
            threads, block = self.choose(ready)
            executed[self.name, block] += 1
            code = translated.code(block)
            if isinstance(code, Instruction):
                self.come_together(code, block, threads)
            else:
                code(self, self.registers, threads)

    def choose(self, ready):
        """Which of the threads that can go on do so, and the block they are at."""
        block = int(self.at[ready].min())
        return np.flatnonzero(ready & (self.at == block)), block

    def check_ended(self) -> None:
        if self.waiting.any():
            where = dict(Counter(self.at[self.waiting].tolist()))
            ended = int((self.at == ENDED).sum())
            raise Fault(f"cannot go on: threads waiting by block of {self.name}: {where}; {ended} have ended")

    def come_together(self, instruction: Instruction, block: int, threads) -> None:
        raise Fault(f"{instruction} in a function that is called")

    def load(self, *access):
        raise Fault(f"{self.name}, which kernels call, loads or stores")

    store = add_atomically = fence = load

    def call(self, name: str, threads, arguments):
        """The results of a function, for these threads."""
        passed = [np.ascontiguousarray(np.broadcast_to(argument, threads.shape)) for argument in arguments]
        if self.program.rounding.host_pow and "pow" in name:
            return host_pow(*passed)
        frame = Frame(self.program, name, len(threads), passed)
        frame.go()
        return frame.result

    def set_result(self, threads, bits) -> None:
        self.result[threads] = bits

    def leave(self, threads) -> None:
        self.at[threads] = ENDED


def unwritten(width: int, count: int):
    """A register's bits at first: not zero, so that reading them shows."""
    if width == PREDICATE:
        return np.zeros(count, bool)
    unsigned = UNSIGNED[width]
    return np.full(count, UNWRITTEN * (np.iinfo(unsigned).max // 0xFF), unsigned)
