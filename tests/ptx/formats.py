"""PTX's types as NumPy's. A register holds bits, as an unsigned array; arithmetic looks at them as numbers."""

import re

import numpy as np

from ptx import Fault

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
PREDICATE = 1  # bits of a predicate, which is an array of bool
KINDS = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}
#: NumPy's types by the names that translated code gives them.
NAMES = {f"{kind}{bits}": t for kind, by_bits in KINDS.items() for bits, t in by_bits.items()}
NAN = {16: 0x7FFF, 32: 0x7FFFFFFF}  # the one NaN that arithmetic of these widths gives


def width(kind: str) -> int:
    """Bits of a PTX type, named without its dot."""
    if kind == "pred":
        return PREDICATE
    if not (found := re.fullmatch(r"(?:[busf]|bf)(8|16|32|64)", kind)):
        raise Fault(f"unknown type {kind}")
    return int(found[1])


def is_float(kind: str) -> bool:
    return kind in ("f16", "f32", "f64")


def is_signed(kind: str) -> bool:
    return kind.startswith("s")


def to_bf16(values):
    """The bits in bfloat16 of float32, to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(NAN[16]), rounded.astype(np.uint16))


def to_f16(values):
    """The bits in float16 of float32."""
    return np.where(np.isnan(values), np.uint16(NAN[16]), values.astype(np.float16).view(np.uint16))


def to_integer(values, integer, of_nan: int):
    """The bits of floating-point values cut to a signed integer, held within its range."""
    limits = np.iinfo(integer)
    whole = np.trunc(values)
    low, high, nan = whole <= float(limits.min), whole >= float(limits.max), np.isnan(values)
    inside = np.where(low | high | nan, 0.0, whole).astype(integer)
    held = np.where(low, integer(limits.min), np.where(high, integer(limits.max), inside))
    return np.where(nan, integer(of_nan), held).view(UNSIGNED[limits.bits])


def shift_left(values, distance, unsigned):
    """Bits that are shifted as far as there are bits, or farther, are gone."""
    bits = np.iinfo(unsigned).bits
    gone = np.asarray(distance) >= bits
    return np.where(gone, unsigned(0), values << np.where(gone, 0, distance).astype(unsigned))


def shift_right(values, distance, integer):
    """Signed values keep their sign."""
    bits = np.iinfo(integer).bits
    far = np.asarray(distance) >= bits
    shifted = values >> np.where(far, bits - 1, distance).astype(integer)
    if np.issubdtype(integer, np.signedinteger):
        return shifted.view(UNSIGNED[bits])
    return np.where(far, integer(0), shifted)


def permuted(a, b, selector):
    """Bytes of two words: the lowest bits of a nibble of the selector say which, its highest whether only the sign."""
    both = np.asarray(b).astype(np.uint64) << np.uint64(32) | np.asarray(a)
    result = np.zeros(np.broadcast(both, selector).shape, np.uint32)
    for k in range(4):
        nibble = np.asarray(selector) >> np.uint32(4 * k) & np.uint32(15)
        byte = (both >> (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)).astype(np.uint8)
        sign = np.where(byte >= 128, np.uint8(255), np.uint8(0))
        result |= np.where(nibble >= 8, sign, byte).astype(np.uint32) << np.uint32(8 * k)
    return result


def divide_integers(a, b):
    """Toward zero."""
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).view(UNSIGNED[quotient.dtype.itemsize * 8])
