"""The emitted PTX of the norm: what costs too much is left to the numbers that need it."""

import numpy as np
import pytest
from support.machine_code import needs_tools

from ptx.comparison import Comparison, Step
from ptx.device import FAST, SLOW
from ptx.grid import Execution
from ptx.names import DType
from ptx.problem import Problem
from ptx.rounding import AS_ON_THE_HOST
from ptx.translating import Program

pytestmark = needs_tools
MIXES = [(DType.F32, grad, DType.F32) for grad in (DType.F32, DType.BF16, DType.F16)]
SIZES = [*range(20), 64, 255, 257, 521]


def conversions(program: Program) -> int:
    """How often elements were loaded and converted to double."""
    kernels = {name for name, _ in program.executed if "measure_kernel" in name}
    blocks = [(name, k, block) for name in kernels for k, block in enumerate(program.translated(name).flow.blocks)]
    return sum(
        program.executed[name, k]
        for name, k, block in blocks
        if {"ld.global", "cvt.f64.f32"} <= {opcode(ins) for ins in block}
    )


def opcode(instruction) -> str:
    name = instruction.opcode
    return "ld.global" if name.startswith("ld.global") else name


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix[1].name)
@pytest.mark.parametrize("ratio", [FAST, SLOW], ids=["fast", "slow"])
def test_ordinary_gradients_are_not_converted(device, ptx, mix, ratio):
    """Negative numbers and zeros included; what shares a lane with an infinity is."""
    program = Program(ptx, AS_ON_THE_HOST)
    problem, equal = (Problem((mix, mix), SIZES, device.native.scratch_bytes(), 0) for _ in range(2))
    comparison = Comparison(device, Execution(program), problem, equal, ratio)
    for scale in (1.0, 1e-5, 0.0):
        comparison.take(Step("ordinary", 1.0, gradients=scale))
    assert conversions(program) == 0
    comparison.take(Step("one is infinite", 1.0, bad=np.inf, skips=True))
    assert conversions(program) > 0
