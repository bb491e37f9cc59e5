"""The compiled CPU module by itself: one result on every instruction set and thread count, on PyTorch's threads."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.tensors import assert_same_bits

from greedylr_fused import FusedAdamW
from greedylr_fused.control.slots import SLOTS, block, ring_begin
from greedylr_fused.tensors import formats

native = pytest.importorskip("greedylr_fused._cpu", reason="the CPU module was not built", exc_type=ImportError)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # by dtype code
SIZES = (0, 1, 2, 7, 31, 63, 129, 1000, 5003)
CHUNK = 512
SLOT = {name: index for index, name in enumerate(native.SLOTS)}
MIXES = [mix for mix in native.MIXES if max(mix) < len(DTYPES)]
NAMES = [isa for isa in native.isas() if isa != "baseline"]


@pytest.fixture(autouse=True)
def _restore_isa():
    chosen = native.isa()
    yield
    native.set_isa(chosen)


class Problem:
    """Tensors of one mix, each a view one element into its storage, and the native table over them. With `l1`
    absolute values are measured, too.
    """

    def __init__(self, mix, sizes=SIZES, amsgrad=False, beta1=0.9, l1=False):
        generator = torch.Generator().manual_seed(7)
        param, grad, state = (DTYPES[code] for code in mix)
        rows = [param, grad, state, state, state, torch.bfloat16, torch.float16]
        self.arrays = [[(torch.randn(n + 1, generator=generator).to(d))[1:] for n in sizes] for d in rows]
        for moment in itertools.chain(*self.arrays[3:5]):
            moment.abs_()
        addresses = [[t.data_ptr() for t in row] for row in self.arrays]
        if not amsgrad:
            addresses[formats.Row.MAX_EXP_AVG_SQ] = [0] * len(sizes)
        absent = [[0] * len(sizes)] * 3  # no 8 bits and no masters here: csrc/tests/stored.cpp
        addresses[formats.Row.REMAINDER : formats.Row.REMAINDER] = absent
        if param != torch.float32:
            addresses[formats.Row.COPY_BF16 :] = [[0] * len(sizes)] * 2
        self.steps = torch.arange(len(sizes), dtype=torch.float32)
        addresses.append([count.data_ptr() for count in self.steps])
        addresses += [[1] * len(sizes)] * (len(formats.Row) - len(addresses))
        self.ptrs = torch.tensor(addresses)
        self.numel = torch.tensor(sizes)
        self.group = torch.zeros(len(sizes), dtype=torch.int32)
        self.hyper = torch.tensor([[beta1, 0.99, 1e-6, 0.1, 0.0, 0.0]], dtype=torch.float64)
        self.norm_weight = torch.ones(len(sizes), dtype=torch.float64)
        chunks = [(i, k) for i, n in enumerate(sizes) for k in range(-(-n // CHUNK))]
        self.chunk_tensor, self.chunk_index = torch.tensor(chunks, dtype=torch.int32).T.contiguous()
        self.control = torch.zeros(ring_begin(1), dtype=torch.float64)
        slots = {"n_groups": 1, "grad_scale": 2, "max_grad_norm": float("inf")}
        for name, value in slots.items():
            self.control[SLOT[name]] = value
        self.control[block("lr", 1)] = 0.01
        self.curve = torch.ones(1, dtype=torch.float64)
        tensors = ("ptrs", "numel", "group", "hyper", "norm_weight", "chunk_tensor", "chunk_index", "control")
        tensors = (*tensors, "curve")
        self.table = native.TensorTable(
            **{name: getattr(self, name).data_ptr() for name in tensors},
            n_tensors=len(sizes),
            n_chunks=len(chunks),
            chunk=CHUNK,
            l1=l1,
            tuned=False,
            launches=[(*mix, 0, len(chunks))],
        )

    def run(self, isa="baseline", threads=1):
        native.set_isa(isa)
        for _ in range(3):
            self.table.measure(threads, True)
            self.table.update(threads, True)
        return self

    def results(self):
        return [*itertools.chain(*self.arrays), self.steps, self.control]


def assert_same_results(a, b):
    for x, y in zip(a.results(), b.results(), strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_instruction_sets_agree_bit_for_bit(mix, amsgrad, isa):
    for options in ({"beta1": 0.9}, {"beta1": 0.2, "l1": True}):
        expected = Problem(mix, amsgrad=amsgrad, **options).run()
        assert_same_results(Problem(mix, amsgrad=amsgrad, **options).run(isa), expected)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_result_does_not_depend_on_threads(mix):
    sizes = (*SIZES, 200_000)
    for threads, l1 in ((2, False), (5, True)):
        expected = Problem(mix, sizes, l1=l1).run(native.isa())
        assert_same_results(Problem(mix, sizes, l1=l1).run(native.isa(), threads), expected)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_every_16_bit_pattern(dtype, isa):
    mix = (DTYPES.index(dtype),) * 3
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()]
    problem = Problem(mix, (finite.numel(),), l1=True)
    problem.arrays[formats.Row.GRAD][0].copy_(finite)
    native.set_isa(isa)
    problem.table.measure(1, True)
    exact = finite.double().square().sum()
    torch.testing.assert_close(problem.control[SLOT["grad_sq_sum"]], exact, rtol=1e-13, atol=0)
    exact = torch.tensor(math.fsum(finite.double().abs().tolist()), dtype=torch.float64)
    additions = CHUNK // 64 + 64 + finite.numel() // CHUNK  # in a row: in a lane, of lanes, of chunks
    torch.testing.assert_close(problem.control[SLOT["grad_abs_sum"]], exact, rtol=additions * 2.0**-53, atol=0)
    assert problem.control[SLOT["grad_nonfinite"]] == 0


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_one_nonfinite_gradient_is_noticed(mix, value, isa):
    problem = Problem(mix)
    native.set_isa(isa)
    for tensor, element in ((1, 0), (6, 128), (8, 5002)):
        grad = problem.arrays[formats.Row.GRAD][tensor]
        kept, grad[element] = grad[element].clone(), value
        problem.table.measure(1, True)
        assert problem.control[SLOT["grad_nonfinite"]] > 0
        assert not problem.control[SLOT["grad_sq_sum"]].isfinite()
        grad[element] = kept
        problem.table.measure(1, True)
        assert problem.control[SLOT["grad_nonfinite"]] == 0


def test_large_finite_doubles_are_not_called_nonfinite():
    problem = Problem((1, 1, 1))
    problem.arrays[formats.Row.GRAD][7][500] = 1e300
    problem.table.measure(1, True)
    assert problem.control[SLOT["grad_sq_sum"]].isinf()
    assert problem.control[SLOT["grad_nonfinite"]] == 0


@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_conversions_match_torch(dtype, name):
    narrow, widen = getattr(native, f"to_{name}"), getattr(native, f"from_{name}")
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    wide = torch.empty(2**16)
    widen(patterns.data_ptr(), wide.data_ptr(), 2**16)
    torch.testing.assert_close(wide, patterns.float(), rtol=0, atol=0, equal_nan=True)
    # Every float whose low half is at, just below or just above a rounding edge of either format.
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x5000, 0x6FFF, 0xF000]
    high = np.arange(2**16, dtype=np.uint32) << 16
    floats = torch.from_numpy(np.concatenate([high | edge for edge in edges]).view(np.float32))
    narrowed = torch.empty(floats.numel(), dtype=dtype)
    narrow(floats.data_ptr(), narrowed.data_ptr(), floats.numel())
    torch.testing.assert_close(narrowed, floats.to(dtype), rtol=0, atol=0, equal_nan=True)
    finite = ~floats.isnan()
    assert_same_bits(narrowed[finite], floats.to(dtype)[finite])


def test_slots_and_dtypes_are_those_of_python():
    assert native.SLOTS == SLOTS
    assert native.DTYPES == {dtype.name: dtype.value for dtype in formats.DType}
    assert set(native.MIXES) == {tuple(map(int, mix)) for mix in formats.MIXES}


def test_unsupported_mix_is_named():
    with pytest.raises(ValueError, match=r"\(F64, F32, F64\).*there are loops for \(F32, F32, F32\)"):
        Problem((1, 0, 1))


def test_unknown_instruction_set_is_named():
    with pytest.raises(ValueError, match="'mmx'.*it can run .*baseline"):
        native.set_isa("mmx")


def test_control_runs_without_tensors():
    problem = Problem((0, 0, 0))
    problem.control[SLOT["kind"]] = 0
    trace = np.frombuffer(
        native.run_control(problem.control.data_ptr(), problem.curve.data_ptr(), [3.0, 1.0], [1.0, 2.0])
    )
    assert trace.tolist() == [0.01, 0.01]
    assert problem.control[SLOT["step"]] == 2 and problem.control[SLOT["loss"]] == 1.0


def test_chunks_taken_in_one_run_differ_in_all_they_can():
    """A thread takes several chunks at a time: one optimizer of many small tensors has the bits of one for each."""

    def params():
        generator = torch.Generator().manual_seed(3)
        dtypes = [torch.float32] * 50 + [torch.bfloat16] * 49
        found = [torch.nn.Parameter(torch.randn(5 + i, generator=generator).to(d)) for i, d in enumerate(dtypes)]
        for step in range(3):
            for i, param in enumerate(found):  # own step counts, and tensors without a gradient
                param.grad = torch.randn(5 + i, generator=generator).to(param.dtype) if (i + step) % 3 else None
            yield found

    def options(i):
        return {"lr": 1e-2 * (1 + i % 2), "weight_decay": 0.1 * (i % 5)}

    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = alone = None
        for ours, theirs in zip(params(), params(), strict=True):
            groups = [{"params": [p], **options(i)} for i, p in enumerate(ours)]
            together = together or FusedAdamW(groups, backend="cpu")
            alone = alone or [FusedAdamW([p], backend="cpu", **options(i)) for i, p in enumerate(theirs)]
            for optimizer in (together, *alone):
                optimizer.step()
            for a, b in zip(ours, theirs, strict=True):
                assert_same_bits(a.detach(), b.detach())
    finally:
        torch.set_num_threads(previous)


THREADS = """
import os, torch
from greedylr_fused import FusedAdamW
torch.set_num_threads(2)
parameter = torch.randn(1_000_000, requires_grad=True)
parameter.grad = torch.randn(1_000_000)
parameter.detach().exp().sum()  # starts PyTorch's workers
before = set(os.listdir("/proc/self/task"))
optimizer = FusedAdamW([parameter], lr=1e-3, max_grad_norm=1.0, backend="cpu")
optimizer.step()
parameter.detach().exp().sum()
assert set(os.listdir("/proc/self/task")) == before, "the step started threads of its own"
assert len(before) >= 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.skipif(native.threads_backend() == "std::thread", reason="no OpenMP runtime in the process to share")
def test_step_runs_on_the_threads_of_pytorch():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_denormals_are_treated_as_the_caller_says_on_every_thread():
    """The mode belongs to a thread, and which thread gets which chunk is chance."""
    grad = torch.full((1 << 20,), 1e-22)  # its square is denormal
    found = set()
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    try:
        for _ in range(8):
            param = torch.nn.Parameter(torch.zeros_like(grad))
            param.grad = grad
            opt = FusedAdamW([param], backend="cpu")
            opt.step()
            found.add(int(opt.state[param]["exp_avg_sq"].count_nonzero()))
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(previous)
    assert found == {0}
