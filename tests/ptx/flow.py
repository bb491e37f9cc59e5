"""Basic blocks: runs of instructions that a thread enters at the first and leaves after the last.

What threads do together (barriers, shuffles) is a block of its own, so that each waits there for the others.
"""

import re
from dataclasses import dataclass

from ptx import Fault
from ptx.parsing import Function, Instruction

JUMPS = ("bra", "ret", "exit")
TOGETHER = ("bar", "barrier", "shfl")
NO_RESULT = ("st", "membar", *JUMPS, *TOGETHER[:2])


@dataclass(frozen=True)
class Flow:
    """A function's blocks; where labels lead, as numbers of blocks; the registers that outlive the block of a value."""

    blocks: list[list[Instruction]]
    targets: dict[str, int]
    crossing: set[str]


def is_together(instruction: Instruction) -> bool:
    return instruction.parts[0] in TOGETHER


def flow_of(function: Function) -> Flow:
    starts = sorted(_leaders(function))
    number = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(function.instructions)]
    blocks = [function.instructions[start:end] for start, end in zip(starts, ends, strict=True)]
    if not blocks or blocks[-1][-1].predicate or blocks[-1][-1].parts[0] not in JUMPS:
        raise Fault(f"{function.name} runs beyond its end")
    targets = {label: number[at] for label, at in function.labels.items() if at in number}
    return Flow(blocks, targets, set().union(*map(_crossing, blocks)))


def _leaders(function: Function) -> set[int]:
    leaders = {0, *function.labels.values()}
    for at, instruction in enumerate(function.instructions):
        if instruction.parts[0] in JUMPS:
            leaders.add(at + 1)
        if is_together(instruction):
            leaders |= {at, at + 1}
    return {at for at in leaders if at < len(function.instructions)}


def _crossing(block: list[Instruction]) -> set[str]:
    """Registers that a block reads before it writes them, and all of a barrier or shuffle."""
    found: set[str] = set()
    written: set[str] = set()
    for instruction in block:
        reads, writes = reads_and_writes(instruction)
        found |= reads - written
        written |= writes
    return found | written if is_together(block[0]) else found


def reads_and_writes(instruction: Instruction) -> tuple[set[str], set[str]]:
    """Names of registers, without the special ones (%tid.x)."""
    reads = {instruction.predicate} if instruction.predicate else set()
    if instruction.parts[0] == "call":
        return reads, set()
    registers = [set(re.findall(r"%[a-z]+\d*(?![\w.])", operand)) for operand in instruction.operands]
    if instruction.parts[0] in NO_RESULT:
        return reads.union(*registers), set()
    return reads.union(*registers[1:]), registers[0]
