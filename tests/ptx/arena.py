"""Memory that kernels may touch: arrays with guards between them, and the storage formats of their elements."""

import numpy as np

from ptx import formats
from ptx.memory import Ranges
from ptx.names import DType

GUARD = 0xA5
GAP = 64  # bytes of it between arrays, at least
BITS = {
    DType.F32: np.uint32,
    DType.F64: np.uint64,
    DType.BF16: np.uint16,
    DType.F16: np.uint16,
    DType.BF16_R16: np.uint16,
    DType.BF16_R8: np.uint16,
    DType.Q8: np.uint8,
}
QUIET_NAN = {DType.F32: 0x7FC00000, DType.F64: 0x7FF8 << 48, DType.BF16: 0x7FC0, DType.F16: 0x7E00}


def stored(dtype: DType, numbers):
    """The bits of numbers in a storage format."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(numbers, np.float64 if dtype == DType.F64 else np.float32)
        if dtype in (DType.F32, DType.F64):
            return narrow.view(BITS[dtype])
        if dtype == DType.Q8:
            return np.clip(np.nan_to_num(narrow) * 1000, -1e9, 1e9).astype(np.int64).astype(np.uint8)  # any code
        return formats.to_f16(narrow) if dtype == DType.F16 else formats.to_bf16(narrow)


def is_nan(dtype: DType, bits):
    if dtype == DType.BF16:
        bits, dtype = bits.astype(np.uint32) << np.uint32(16), DType.F32
    return np.isnan(bits.view(formats.FLOAT[8 * bits.itemsize]))


def with_one_nan(dtype: DType, bits):
    """Bits that can be compared between processors, which have different NaNs."""
    if dtype not in QUIET_NAN:  # codes, and masters, of which there is one NaN
        return bits
    return np.where(is_nan(dtype, bits), BITS[dtype](QUIET_NAN[dtype]), bits)


class Arena:
    """One piece of memory, filled with guards at first.

    Attributes:
        base: its first address.
        size: bytes of it.
    """

    def __init__(self, size: int) -> None:
        self._owner = np.full(size + 256, GUARD, np.uint8)
        skipped = -self._owner.__array_interface__["data"][0] % 256
        self._bytes = self._owner[skipped : skipped + size]
        self._free = GAP
        self._ranges: list[tuple[int, int]] = []
        self.base = self._bytes.__array_interface__["data"][0]
        self.size = size

    def place(self, array, offset: int = 0):
        """Address and view of a copy that begins `offset` bytes after a multiple of 16."""
        array = np.ascontiguousarray(array)
        begin = -(-self._free // 16) * 16 + offset
        end = begin + array.nbytes
        self._free = end + GAP
        if self._free > self.size:
            raise MemoryError("the arena is too small")
        view = self._bytes[begin:end].view(array.dtype)
        view[:] = array.ravel()
        self._ranges.append((self.base + begin, self.base + end))
        return self.base + begin, view

    def allowed(self) -> Ranges:
        return Ranges(self._ranges)

    def guards_intact(self) -> bool:
        guard = np.ones(self.size, bool)
        for begin, end in self._ranges:
            guard[begin - self.base : end - self.base] = False
        return bool((self._bytes[guard] == GUARD).all())
