"""Triton's launches, run from the PTX of its kernels on tensors in host memory, under the backend's real host code."""

import numpy as np
from support.compiled import GIVEN, compiled

from greedylr_fused.backends.triton.backend import TritonBackend, _Kernel
from ptx.dialect import translated
from ptx.grid import Execution
from ptx.memory import Ranges
from ptx.names import Row
from ptx.rounding import MACHINE, Rounding
from ptx.translating import Program

THREADS = 128
TARGET = 90
GROUP = 64  # elements that share a scale


class Launches:
    """Attributes:
    program: of the last launch.
    schedule: as of `Execution`.
    mutate: of the text that is run, None for none.
    """

    def __init__(self, rounding: Rounding = MACHINE, schedule: str = "together", mutate=None) -> None:
        self.rounding, self.schedule, self.mutate = rounding, schedule, mutate
        self._programs: dict[tuple, tuple[Program, list[int]]] = {}
        self.program: Program | None = None
        self._count = 0

    def install(self, monkeypatch) -> None:
        """Let the backend "triton" run on CPU tensors so, until the test ends."""
        monkeypatch.setattr(TritonBackend, "unavailable", staticmethod(lambda device: None))

        def call(kernel, *values):
            args = list(kernel._args)
            for place, value in zip(kernel._places, values, strict=False):
                args[place] = value
            self.run(kernel._function, kernel._grid[0], args)

        monkeypatch.setattr(_Kernel, "__call__", call)

    def run(self, function, programs: int, args) -> None:
        values = dict(zip(function.arg_names, args, strict=True))
        constants = {p.name: values[p.name] for p in function.params if p.is_constexpr or values[p.name] is None}
        given = {"snapshot": GIVEN} if values.get("snapshot") is not None else {}
        key = (function.__name__, *map(str, constants.values()), *given)
        if key not in self._programs:
            kernel = compiled(function, TARGET, **constants, **given)
            text, sizes = translated(kernel.asm["ptx"], kernel.metadata.shared)
            self._programs[key] = Program(self.mutate(text) if self.mutate else text, self.rounding), sizes
        self.program, sizes = self._programs[key]
        passed = packed([value for name, value in values.items() if name not in constants], sizes)
        allowed = Ranges(touched(values)) if "P" in values else None
        execution = Execution(self.program, self.schedule, 0, allowed)
        execution.launch(function.__name__, programs, THREADS, passed, self._count)
        self._count += 1


def packed(values, sizes: list[int]) -> bytes:
    """The bytes of parameters; those which Triton appends are null."""
    found = b""
    for k, size in enumerate(sizes):
        value = values[k] if k < len(values) else 0
        number = value if isinstance(value, int) else value.data_ptr()
        found = found.ljust(-(-len(found) // size) * size, b"\0") + np.array([number]).astype(f"<i{size}").tobytes()
    return found


def touched(values) -> list[tuple[int, int]]:
    """What an update may read or write: the tensors that it is given, and what the table of addresses points to, all of
    one mix.
    """
    given = [value for value in values.values() if hasattr(value, "data_ptr")]
    found = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in given]
    if values["snapshot"] is not None:
        found.append((values["snapshot"], values["snapshot"] + 4096))
    state = values["S"].primitive_bitwidth
    bits = {Row.PARAM: values["P"].primitive_bitwidth, Row.GRAD: values["G"].primitive_bitwidth}
    bits |= dict.fromkeys((Row.EXP_AVG, Row.EXP_AVG_SQ, Row.MAX_EXP_AVG_SQ), state)
    bits |= {Row.REMAINDER: values["R"].primitive_bitwidth} if values["R"] is not None else {}
    bits |= dict.fromkeys((Row.EXP_AVG_SCALE, Row.EXP_AVG_SQ_SCALE), 32 / GROUP)
    for row, size in bits.items():
        for address, numel in zip(values["ptrs"][row].tolist(), values["numel"].tolist(), strict=True):
            if address:
                found.append((address, address + int(numel * size) // 8))
    return found + [(address, address + 4) for address in values["ptrs"][Row.STEP].tolist()]
