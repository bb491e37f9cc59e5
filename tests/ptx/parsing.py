"""The text of a PTX module as functions with registers, shared variables, labels and instructions."""

import re
from dataclasses import dataclass, field
from functools import cached_property

from ptx import Fault
from ptx.formats import width

SHARED = r"\.shared \.align (\d+) \.(\w+) ([\w$]+)(?:\[(\d+)\])?"
HEADER = re.compile(r"^(?:\.visible \.entry|\.func)[^{;]*\{", re.M)
STATEMENT = re.compile(r"\s+|[{}]|(?P<label>\$\w+):|(?P<text>[^;{}$][^;]*);")
INSTRUCTION = re.compile(r"(?:@(!?)(%\w+) )?([a-z][\w.]*)(?: (.*))?")
OPERAND = re.compile(r"(?:[^,{[(]|\{[^}]*\}|\[[^]]*\]|\([^)]*\))+")


@dataclass(frozen=True)
class Instruction:
    """`@!predicate opcode operands`, with its line in the module."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    line: int

    @cached_property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)} (line {self.line})"


@dataclass(frozen=True)
class Variable:
    """One in shared memory; `size` in bytes."""

    align: int
    size: int


@dataclass
class Function:
    """A kernel, or a function that kernels call.

    Attributes:
        parameters: bytes of each, by name, in order.
        registers: bits of each, by name, or by prefix where they are numbered.
        arguments: what instructions put arguments and results of calls into.
    """

    name: str
    is_kernel: bool
    parameters: dict[str, int]
    registers: dict[str, int] = field(default_factory=dict)
    arguments: set[str] = field(default_factory=set)
    shared: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def width(self, register: str) -> int:
        """Bits of a register."""
        found = self.registers.get(register) or self.registers.get(register.rstrip("0123456789"))
        if found is None:
            raise Fault(f"{self.name}: register {register} is not declared")
        return found


class Module:
    """A module's functions, each parsed when it is first asked for."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        self.shared = dict(_variable(found) for found in re.finditer(rf"^{SHARED};", text, re.M))
        self._texts = {}
        for header in HEADER.finditer(text):
            end = _closing(text, header.end())
            name = re.search(r"(?:\.entry|\.func\s+(?:\([^)]*\))?)\s*(\w+)", header[0])[1]
            line = text.count("\n", 0, header.end()) + 1
            self._texts[name] = (header[0], text[header.end() : end], line)

    @property
    def names(self) -> list[str]:
        return list(self._texts)

    def function(self, name: str) -> Function:
        if name not in self._texts:
            raise Fault(f"no function {name} in this module")
        header, body, line = self._texts[name]
        function = Function(name, ".entry" in header, _parameters(header))
        if function.is_kernel and len(function.parameters) != 1:
            raise Fault(f"{name}: {len(function.parameters)} parameters; kernels with one are supported")
        _read_body(function, body, line)
        return function


def split_operands(text: str) -> tuple[str, ...]:
    """At commas outside of brackets."""
    return tuple(part.strip() for part in OPERAND.findall(text))


def listed(operand: str) -> list[str]:
    """The members of `{a, b}` or `(a, b)`; of anything else, itself."""
    return [member.strip() for member in operand.strip("{}()").split(",")]


def _closing(text: str, start: int) -> int:
    """Where the brace is closed that was opened before `start`."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise Fault("a function without end")


def _variable(found: re.Match[str]) -> tuple[str, Variable]:
    return found[3], Variable(int(found[1]), width(found[2]) // 8 * int(found[4] or 1))


def _parameters(header: str) -> dict[str, int]:
    found = re.findall(r"\.param\s+(?:\.align \d+\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", header)
    return {name: width(kind) // 8 * int(count or 1) for kind, name, count in found if not name.startswith("func_ret")}


def _read_body(function: Function, body: str, line: int) -> None:
    at = 0
    while at < len(body):
        found = STATEMENT.match(body, at)
        if found is None:
            raise Fault(f"line {line}: cannot read {body[at : at + 80]!r}")
        if found["label"]:
            function.labels[found["label"]] = len(function.instructions)
        elif found["text"]:
            _read_statement(function, " ".join(found["text"].split()), line)
        line += found[0].count("\n")
        at = found.end()


def _read_statement(function: Function, text: str, line: int) -> None:
    if instruction := INSTRUCTION.fullmatch(text):
        negated, predicate, opcode, operands = instruction.groups()
        read = Instruction(opcode, split_operands(operands or ""), predicate, bool(negated), line)
        function.instructions.append(read)
    elif register := re.fullmatch(r"\.reg \.(\w+) (%?\w+)(?:<\d+>)?", text):
        bits = width(register[1])
        if function.registers.setdefault(register[2], bits) != bits:
            raise Fault(f"line {line}: {register[2]} is declared with two widths")
    elif argument := re.fullmatch(r"\.param \.\w+ (\w+)", text):
        function.arguments.add(argument[1])
    elif variable := re.fullmatch(SHARED, text):
        name, found = _variable(variable)
        function.shared[name] = found
    elif not text.startswith(".pragma"):
        raise Fault(f"line {line}: {text}")
