"""Instructions that pick bits out of registers."""

from ptx.operands import BlockWriter, expect
from ptx.parsing import Instruction


def insert_bits(block: BlockWriter, ins: Instruction) -> None:
    """bfi, with constant position and length"""
    expect(ins.opcode == "bfi.b32" and all(operand.isdigit() for operand in ins.operands[3:]), ins)
    position, length = map(int, ins.operands[3:])
    field = ((1 << length) - 1) << position & 0xFFFFFFFF
    source, into = block.bits(ins.operands[1], 32), block.bits(ins.operands[2], 32)
    kept = f"{into} & u32({~field & 0xFFFFFFFF})"
    block.set(ins.operands[0], f"({kept}) | (({source} << u32({position})) & u32({field}))")


def extract_bits(block: BlockWriter, ins: Instruction) -> None:
    """bfe, with a sign, and constant position and length"""
    expect(ins.opcode == "bfe.s32" and all(operand.isdigit() for operand in ins.operands[2:]), ins)
    position, length = map(int, ins.operands[2:])
    expect(0 < length and position + length <= 32, ins)
    up = f"({block.bits(ins.operands[1], 32)} << u32({32 - length - position})).view(i32)"
    block.set(ins.operands[0], f"({up} >> i32({32 - length})).view(u32)")


def permute(block: BlockWriter, ins: Instruction) -> None:
    """prmt: each byte one of the eight of two registers, or eight times its highest bit"""
    expect(ins.opcode == "prmt.b32", ins)
    a, b, selector = (block.bits(operand, 32) for operand in ins.operands[1:])
    block.set(ins.operands[0], f"permuted({a}, {b}, {selector})")


TRANSLATIONS = {"bfi": insert_bits, "bfe": extract_bits, "prmt": permute}
