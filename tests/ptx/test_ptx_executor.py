"""What runs the PTX, on small kernels that do what is forbidden; and its numbers against torch's."""

import numpy as np
import pytest
import torch

from ptx import Fault, formats, libraries
from ptx.grid import Execution
from ptx.memory import Ranges
from ptx.translating import Program

KERNEL = """
.version 8.0
.target sm_80
.shared .align 4 .u32 first;
.shared .align 4 .b8 second[8];
.visible .entry kernel(
.param .u64 kernel_param_0
)
{{
.reg .pred %p<4>;
.reg .b32 %r<9>;
.reg .b64 %rd<9>;
ld.param.u64 %rd1, [kernel_param_0];
cvta.to.global.u64 %rd2, %rd1;
mov.u32 %r1, %tid.x;
setp.lt.u32 %p1, %r1, 33;
{body}
ret;
}}
"""


def run(body: str, schedule: str = "together", blocks: int = 1) -> list[int]:
    """Two warps with a parameter that points to 64 numbers; those numbers afterwards."""
    numbers = np.zeros(64, np.uint32)
    begin = numbers.ctypes.data
    execution = Execution(Program(KERNEL.format(body=body)), schedule, 0, Ranges([(begin, begin + numbers.nbytes)]))
    execution.launch("kernel", blocks, 64, np.uint64(begin).tobytes())
    return numbers.tolist()


ADDRESS = "mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3;"


@pytest.mark.parametrize("schedule", ["together", "one by one", "random"])
def test_threads_compute_and_exchange(schedule):
    body = f"{ADDRESS} shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1; st.global.u32 [%rd4], %r2;"
    assert run(body, schedule, blocks=2) == [k ^ 1 for k in range(64)]
    for order in ("", ".relaxed.gpu", ".acquire.gpu", ".release.gpu", ".acq_rel.gpu"):
        body = f"mov.u32 %r2, 3; atom{order}.global.add.u32 %r3, [%rd2], %r2;"
        assert run(body, schedule, blocks=2)[0] == 3 * 128


@pytest.mark.parametrize("pair, smaller, larger", [((1.5, -2.0), -2.0, 1.5), ((np.nan, 3.0), 3.0, 3.0)])
def test_of_a_number_and_a_nan_min_and_max_are_the_number(pair, smaller, larger):
    a, b = (f"0f{np.float32(number).view(np.uint32):08X}" for number in pair)
    for opcode, expected in (("min", smaller), ("max", larger)):
        body = f"mov.u32 %r2, {a}; mov.u32 %r3, {b}; {opcode}.f32 %r4, %r2, %r3; st.global.u32 [%rd2], %r4;"
        assert np.uint32(run(body)[0]).view(np.float32) == expected


def test_threads_part_and_meet_again():
    body = f"""
    mov.u32 %r2, 7; @!%p1 bra $META; mov.u32 %r2, 5;
    $META: st.shared.u32 [first], %r2; bar.sync 0; {ADDRESS} st.global.u32 [%rd4], %r2;"""
    assert run(body) == [5] * 33 + [7] * 31


def test_shared_memory_is_not_zero_at_first():
    assert run(f"{ADDRESS} ld.shared.u32 %r2, [second+4]; st.global.u32 [%rd4], %r2;")[0] == 0xCDCDCDCD


@pytest.mark.parametrize(
    "body, message",
    {
        "popc.b32 %r2, %r1;": "unknown popc",
        "add.sat.s32 %r2, %r1, %r1;": "unknown form",
        "add.rm.f32 %r2, %r1, %r1;": "unknown form",
        "atom.acq_rel.cta.global.add.u32 %r3, [%rd2], %r2;": "unknown form",
        "atom.sc.gpu.global.add.u32 %r3, [%rd2], %r2;": "unknown form",
        "@%p1 mov.u32 %r2, %r1;": "unknown @%p1 mov",
        "bra $END; popc.b32 %r2, %r1; $END:": "unknown popc",
        "mov.u32 %q1, %r1;": "%q1 is not declared",
        "mov.u32 %r2, %clock;": "%clock is not declared",
        "ld.global.u32 %r2, [%rd2+2];": "misaligned: ld of line .* takes 4 bytes",
        "ld.global.v2.u32 {%r2, %r3}, [%rd2+4];": "misaligned: ld of line .* takes 8 bytes",
        "ld.global.u32 %r2, [%rd2+256];": "outside of all arrays",
        "st.u32 [%rd1+-4], %r2;": "st of line .* outside of all arrays",
        "atom.global.add.u32 %r2, [%rd2+256], %r1;": "atom of line .* outside of all arrays",
        "ld.param.u32 %r2, [kernel_param_0+8];": "outside of the 8 bytes of parameters",
        "st.shared.u32 [first+4], %r1;": "out of bounds: st .* of shared memory",
        "st.shared.u32 [second+8], %r1;": "out of bounds: st .* of shared memory",
        "mov.u64 %rd3, first; cvta.shared.u64 %rd4, %rd3; st.u64 [%rd4], %rd3;": "out of bounds: st .* shared memory",
        "@%p1 bra $END; bar.sync 0; $END:": "a thread has ended|cannot go on",
        "@%p1 bra $ELSE; bar.sync 0; bra $END; $ELSE: bar.sync 0; $END:": "cannot go on",
        "@%p1 bra $END; bar.warp.sync -1; $END:": "a thread has ended|cannot go on",
        "bar.warp.sync 1;": "not of all lanes",
        "bar.sync 1;": "unknown bar",
        "shfl.sync.down.b32 %r2|%p2, %r1, 1, 31, -1;": "unknown shfl",
        "shfl.sync.bfly.b32 %r2|%p2, %r1, 32, 31, -1;": "lanes .* apart",
    }.items(),
)
@pytest.mark.parametrize("schedule", ["together", "random"])
def test_what_is_forbidden_or_unknown_ends_the_launch(body, message, schedule):
    with pytest.raises(Fault, match=message):
        run(body, schedule)


def some_floats() -> np.ndarray:
    """float32 of all magnitudes, and those around which narrower formats round."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    middles = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(0x8000)
    return np.concatenate([bits, middles, middles << 3, (middles & 0xFFFF0000) | 0x1000]).view(np.float32)


@pytest.mark.parametrize("convert, dtype", [(formats.to_bf16, torch.bfloat16), (formats.to_f16, torch.float16)])
def test_narrow_formats_round_as_torch(convert, dtype):
    values = some_floats()
    with np.errstate(all="ignore"):
        ours = torch.from_numpy(convert(values).astype(np.int16)).view(dtype)
    theirs = torch.from_numpy(values).to(dtype)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.view(torch.int16)[~ours.isnan()], theirs.view(torch.int16)[~ours.isnan()])


def test_integers_are_cut_and_held():
    values = np.array([1.9, -1.9, 3e9, -3e9, np.nan, np.inf])
    with np.errstate(all="ignore"):
        found = formats.to_integer(values, np.int32, of_nan=0).view(np.int32)
    assert found.tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_product_is_rounded_once(dtype):
    small = dtype(np.finfo(dtype).eps)
    fused = libraries.fused(1 + small, 1 - small, np.array([-1.0], dtype), dtype)
    assert fused.tolist() == [-(float(small) ** 2)]


@pytest.mark.parametrize("distance", [0, 5, 31, 32, 40])
def test_shifts_beyond_the_width_leave_zeros_or_signs(distance):
    values = np.array([1, -5, 2**31 - 1], np.int32)
    right = formats.shift_right(values, distance, np.int32).view(np.int32)
    assert right.tolist() == [int(value) >> distance for value in values]
    left = formats.shift_left(values.view(np.uint32), distance, np.uint32)
    assert left.tolist() == [(int(value) << distance) & 0xFFFFFFFF for value in values]
