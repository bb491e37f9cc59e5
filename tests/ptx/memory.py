"""The memory that a launch sees: every access is inside of what it may touch, and aligned to its size."""

from dataclasses import dataclass

import numpy as np

from ptx import Fault
from ptx.formats import UNSIGNED

UNWRITTEN = 0xCD  # every byte of what a kernel must not read before it has written it
FIRST = 4096  # the lowest address that a process has anything at
END = 1 << 47


class _Process:
    """All of this process's memory, for NumPy to look at; a kernel's global addresses are those of the process."""

    def __init__(self, bits: int) -> None:
        size = bits // 8
        shape, kind = ((END - FIRST) // size,), f"<u{size}"
        self.__array_interface__ = {"data": (FIRST, False), "shape": shape, "typestr": kind, "version": 3}


PROCESS = {bits // 8: np.asarray(_Process(bits)) for bits in UNSIGNED}  # by bytes of an element


@dataclass(frozen=True)
class Site:
    """An access in the program: opcode and line."""

    opcode: str
    line: int

    def __str__(self) -> str:
        return f"{self.opcode} of line {self.line}"


def check_aligned(addresses, size: int, site: Site) -> None:
    bad = addresses % addresses.dtype.type(size) != 0
    if bad.any():
        raise Fault(f"misaligned: {site} takes {size} bytes at once at {int(addresses[bad.argmax()]):#x}")


class Ranges:
    """Addresses that kernels may touch: [first, end) each."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        ordered = sorted(ranges)
        self.firsts = np.array([first for first, _ in ordered], np.uint64)
        self.ends = np.array([end for _, end in ordered], np.uint64)

    def check(self, addresses, size: int, site: Site) -> None:
        before = np.searchsorted(self.firsts, addresses, side="right").astype(np.int64) - 1
        bad = (before < 0) | (addresses + np.uint64(size) > self.ends[np.maximum(before, 0)])
        if bad.any():
            raise Fault(f"out of bounds: {site} at {int(addresses[bad.argmax()]):#x} is outside of all arrays")


class Global:
    """Global memory, within ranges; None: anywhere."""

    def __init__(self, allowed: Ranges | None) -> None:
        self.allowed = allowed

    def locate(self, addresses, size: int, count: int, site: Site):
        """The array that holds elements of this size, and the indices of the first of `count`, after the checks."""
        check_aligned(addresses, size * count, site)
        if self.allowed is not None:
            self.allowed.check(addresses, size * count, site)
        return PROCESS[size], (addresses.astype(np.int64) - FIRST) // size


class Shared:
    """Shared memory of the blocks of a launch, one behind the other; all bytes are `UNWRITTEN` at first."""

    def __init__(self, blocks: int, size: int, variables: list[tuple[int, int]]) -> None:
        self.size = size
        self.bytes = np.full(blocks * size, UNWRITTEN, np.uint8)
        self.views = {bits // 8: self.bytes.view(unsigned) for bits, unsigned in UNSIGNED.items()}
        self.allowed = np.zeros(size + 1, bool)  # the last: whatever lies beyond
        for first, length in variables:
            self.allowed[first : first + length] = True

    def locate(self, addresses, blocks, size: int, count: int, site: Site):
        """As `Global.locate`; `blocks` are those of the threads."""
        check_aligned(addresses, size * count, site)
        first = addresses.astype(np.int64)
        last = first + size * count - 1
        bad = ~(self.allowed[np.minimum(first, self.size)] & self.allowed[np.minimum(last, self.size)])
        if bad.any():
            raise Fault(f"out of bounds: {site} at {int(first[bad.argmax()]):#x} of shared memory")
        return self.views[size], (first + blocks * self.size) // size


class Parameters:
    """The bytes that a kernel is launched with."""

    def __init__(self, values: bytes) -> None:
        self.length = len(values)
        padded = np.frombuffer(values.ljust(-(-len(values) // 8) * 8, bytes([UNWRITTEN])), np.uint8)
        self.views = {bits // 8: padded.view(unsigned) for bits, unsigned in UNSIGNED.items()}

    def locate(self, addresses, size: int, count: int, site: Site):
        check_aligned(addresses, size * count, site)
        if (addresses + np.uint64(size * count) > self.length).any():
            raise Fault(f"out of bounds: {site} is outside of the {self.length} bytes of parameters")
        return self.views[size], addresses.astype(np.int64) // size
