"""How a GPU rounds, and the ways in which a test may have it round differently. All functions return bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx import libraries
from ptx.formats import NAN

TINY, HUGE = 1e-37, 3e38  # between them float32 has room for an error of a few ulp


@dataclass(frozen=True)
class Rounding:
    """What is open in the rounding of a kernel.

    Attributes:
        host_pow: the C library's pow in place of the device's, which differs by 1 ulp in one case of six.
        ulps: by how much div.full, div.approx, sqrt.approx and rcp.approx (of float64 in the upper half of its bits)
            are off at most: by something between that depends on the operands only, as on the machine.
    """

    host_pow: bool = False
    ulps: int = 0


MACHINE = Rounding()
#: So that bits can be compared with the CPU's.
AS_ON_THE_HOST = Rounding(host_pow=True)


def of_f32(values):
    """Bits of a float32 result: there is one NaN."""
    bits, nan = values.view(np.uint32), np.isnan(values)
    return np.where(nan, np.uint32(NAN[32]), bits) if nan.any() else bits


def of_f64(values):
    return values.view(np.uint64)


def fused32(a, b, c):
    return of_f32(libraries.fused(a, b, c, np.float32))


def fused64(a, b, c):
    return of_f64(libraries.fused(a, b, c, np.float64))


def add_toward_zero(a, b):
    """Of numbers whose exact sum float64 holds."""
    exact = np.asarray(a).astype(np.float64) + np.asarray(b).astype(np.float64)
    nearest = exact.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0.0)), nearest)


def saturated(values):
    """Between 0 and 1; a NaN is 0."""
    return np.where(np.isnan(values), np.float32(0.0), np.clip(values, np.float32(0.0), np.float32(1.0)))


def flushed(values):
    """Subnormal numbers, or the bits of some, as zeros; of the kind that is given."""
    numbers = np.asarray(values).view(np.float32)
    result = np.where(np.abs(numbers) < np.finfo(np.float32).tiny, np.copysign(np.float32(0.0), numbers), numbers)
    return result.view(np.asarray(values).dtype)


def host_pow(bases, exponents):
    pairs = zip(bases.view(np.float64), exponents.view(np.float64), strict=True)
    return of_f64(np.array([math.pow(base, exponent) for base, exponent in pairs]))


class Approximate:
    """Operations whose result PTX leaves open within a bound."""

    def __init__(self, ulps: int) -> None:
        self.ulps = ulps

    def errors(self, *operands):
        """For these bits, numbers that look random."""
        mixed = np.uint64(1)
        for bits in operands:
            mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        return ((mixed >> np.uint64(33)) % np.uint64(2 * self.ulps + 1)).astype(np.int64) - self.ulps

    def divide(self, a, b):
        """div.full.f32, div.approx.f32"""
        return self._off(a / b, a, b)

    def take_root(self, values):
        """sqrt.approx.f32"""
        return self._off(np.sqrt(values), values)

    def invert32(self, values):
        """rcp.approx.f32"""
        return self._off(np.float32(1.0) / values, values)

    def _off(self, exact, *operands):
        """The bits of results in float32, off by up to `ulps`."""
        result = np.atleast_1d(exact)
        if self.ulps:
            open_ = (np.abs(result) > TINY) & (np.abs(result) < HUGE)
            moved = result.view(np.int32) + self.errors(*(x.view(np.uint32) for x in operands)).astype(np.int32)
            result = np.where(open_, moved, result.view(np.int32)).view(np.float32)
        return of_f32(result)

    def invert(self, values):
        """rcp.approx.ftz.f64: reads and gives the upper 32 bits only, subnormal numbers being 0."""
        upper = np.uint64(0xFFFFFFFF00000000)
        inputs = (np.atleast_1d(values).view(np.uint64) & upper).view(np.float64)
        inputs = np.where(np.abs(inputs) < np.finfo(np.float64).tiny, np.copysign(0.0, inputs), inputs)
        bits = of_f64(1.0 / inputs)
        subnormal = (bits & np.uint64(0x7FF0000000000000)) == 0
        bits = np.where(subnormal, bits & np.uint64(1 << 63), bits)
        if self.ulps:
            bits = (bits.view(np.int64) + (self.errors(bits) << 32)).view(np.uint64)
        return bits & upper


def names(rounding: Rounding) -> dict[str, Callable]:
    """The operations by the names that translated code gives them."""
    approximate = Approximate(rounding.ulps)
    return {
        "of_f32": of_f32,
        "of_f64": of_f64,
        "fma32": fused32,
        "fma64": fused64,
        "divide": approximate.divide,
        "invert": approximate.invert,
        "take_root": approximate.take_root,
        "invert32": approximate.invert32,
        "add_toward_zero": add_toward_zero,
        "saturated": saturated,
        "flushed": flushed,
    }
