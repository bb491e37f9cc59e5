"""How fast GPUs are at what the loops do, beside their memory: results per clock of a multiprocessor.

Rates: NVIDIA, CUDA C++ Programming Guide, "Arithmetic Instructions", table of the throughput of native arithmetic
instructions; a warp scheduler issues one instruction per clock (the same, "Hardware Multithreading"). Clocks: with 128
lanes for float32 in a multiprocessor, a data sheet's peak of float32 is 256 operations for each of its clocks; the peak
of float64 says in the same way how many lanes there are for that: 64 (H200, B200) or 2. Peaks and bandwidth: NVIDIA's
data sheets of H200, HGX B200 and B300, and GeForce RTX 5090.
"""

import re
from collections import Counter
from dataclasses import dataclass

import pytest

from support.machine_code import Loop, marks

ISSUED = 4 * 32
#: Opcodes by the unit that runs them. Where NVIDIA does not say, the slower of those that it may be.
UNITS = {
    "float64": r"D(ADD|MUL|FMA|SETP)",
    "convert64": r"[FI]2[FI]\S*64",
    "float32": r"F(ADD|MUL|FMA)",
    "half": r"HADD2|HFMA2",
    "special": r"MUFU|F2[IF]\.|I2F",
    "shuffle": r"SHFL|LDS",
    "multiply": r"IMAD|IMUL",
    "integer": r"F2FP|SGXT|LOP3|SHF|PRMT|SEL|[FIV]*MNMX|ISETP|IADD3|VIADD|LEA|MOV|PLOP3|FSETP|FSEL",
}
OTHER = r"LDG|STG|BRA|U[A-Z]+|C?S2R|WARPSYNC|BSSY|BSYNC|YIELD|NOP|\.L_"


@dataclass(frozen=True)
class Gpu:
    """Its name; the architecture whose machine code it runs (a later one, of what the driver makes of the PTX: nearly);
    peaks in 10^12 operations and bytes per second; and results per clock of 64-bit conversions.
    """

    name: str
    target: int
    float32: float
    float64: float
    memory: float
    convert64: int

    @property
    def is_slow_at_double(self) -> bool:
        return self.float32 / self.float64 >= 8

    @property
    def bytes_per_clock(self) -> float:
        """Of memory, for each multiprocessor."""
        return self.memory / (self.float32 / 256)

    def rates(self) -> dict[str, float]:
        float64 = 64 if not self.is_slow_at_double else 2
        return {
            "float64": float64,
            "convert64": self.convert64,
            "float32": 128,
            "half": 64,
            "special": 16,
            "shuffle": 32,
            "multiply": 64,
            "integer": 64,
        }

    def clocks(self, loop: Loop) -> float:
        """Of a multiprocessor for one turn by one thread: what the busiest unit takes, or the issue of all."""
        used = units(loop)
        rates = self.rates()
        return max(sum(loop.values()) / ISSUED, *(count / rates[unit] for unit, count in used.items()))


GPUS = [
    Gpu("H200", 90, float32=67, float64=34, memory=4.8, convert64=16),
    Gpu("B200", 100, float32=75, float64=37, memory=8.0, convert64=16),
    Gpu("B300", 100, float32=75, float64=1.2, memory=8.0, convert64=2),
    Gpu("RTX 5090", 100, float32=104.8, float64=1.64, memory=1.792, convert64=2),
]


def each_gpu(gpus: list[Gpu]) -> pytest.MarkDecorator:
    """A test of each; without --exhaustive of the chosen target, and of those that are slow at double."""
    found = [pytest.param(gpu, marks=() if gpu.is_slow_at_double else marks(gpu.target), id=gpu.name) for gpu in gpus]
    return pytest.mark.parametrize("gpu", found)


def units(loop: Loop) -> Counter[str]:
    """Instructions of a loop by the unit that runs them."""
    found: Counter[str] = Counter()
    for opcode, count in loop.items():
        unit = next((unit for unit, pattern in UNITS.items() if re.match(pattern, opcode)), None)
        assert unit or not opcode or re.match(OTHER, opcode), f"{opcode}: which unit runs it?"
        if unit:
            found[unit] += count
    return found
