"""8-bit moments and masters in Triton against the reference: one step from equal state, whatever was stored before.

In the interpreter all bits agree. Compiled, the roots of codes and the quotient of an update are approximations: codes
are within one, values within a unit in the last place of what is stored.

Runs where Triton runs kernels: on a GPU, or under TRITON_INTERPRET=1 (test_triton_interpreter.py sees to that).
"""

import pytest
import torch
from support.tensors import generator, parameter, same_bits, set_grad

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import Place, eight_bit, masters

F32, BF16 = torch.float32, torch.bfloat16
#: Elements: more groups than the kernel takes at once, in the interpreter or compiled, and no multiple of that.
CHUNK = 35 * 64
SHAPES = [(4, 1024), (64, 64), (33, 192)]  # the last is two chunks and a piece
#: (parameter, gradient, moments, masters)
MIXES = [(F32, F32, torch.int8, None)]
MIXES += [(BF16, grad, torch.int8, master) for grad in (BF16, F32) for master in (None, "int16", "int8")]
MIXES += [(BF16, grad, F32, master) for grad in (BF16, F32) for master in ("int16", "int8")]
every_mix = pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(str(x).removeprefix("torch.") for x in mix))
#: Rounding is by where elements lie in the whole parameter: in one piece, across 2^32 amid a chunk, in short runs whose
#: ends are anywhere, in long ones far apart.
PLACES = [
    Place(3, 0, 1 << 20, 1 << 20),
    Place(1, (1 << 32) - 640, 1 << 20, 1 << 20),
    Place(70000, 128, 192, 960),
    Place(5, 64, 1280, 3 << 32),
]


@pytest.fixture
def backends(device, monkeypatch):
    """Names of the backend under test and of the reference, on tensors of several chunks."""
    backend = pytest.importorskip("greedylr_fused.backends.triton.backend").TritonBackend
    if (reason := backend.unavailable(device)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(backend, "chunk_size", CHUNK)
    return "triton", "reference"


@pytest.fixture
def placed(monkeypatch):
    """Lets parameters lie at `PLACES`, by their number."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: PLACES[number % len(PLACES)])


class Pair:
    """The same parameters under two optimizers, the second being the oracle.

    Args:
        offset: elements by which parameters and gradients lie off their memory's begin.
    """

    def __init__(self, device, backends, mix, shapes, *, offset=0, seed=1, **options) -> None:
        self.mix, self.offset, self.random = mix, offset, generator(seed)
        values = [torch.randn(shape, generator=self.random).to(device, mix[0]) for shape in shapes]
        self.sides = [[parameter(self.moved(value)) for value in values] for _ in backends]
        options = {"lr": 0.01, "weight_decay": 0.1, "state_dtype": mix[2], "master_weights": mix[3]} | options
        self.optimizers = [
            FusedAdamW(params, backend=name, **options) for name, params in zip(backends, self.sides, strict=True)
        ]

    def moved(self, value):
        memory = torch.zeros(value.numel() + 16, dtype=value.dtype, device=value.device)
        memory[self.offset : self.offset + value.numel()] = value.reshape(-1)
        return memory[self.offset : self.offset + value.numel()].view(value.shape)

    def step(self, grads) -> None:
        for params, opt in zip(self.sides, self.optimizers, strict=True):
            for param, grad in zip(params, grads, strict=True):
                set_grad(param, None if grad is None else self.moved(grad.to(param.device, self.mix[1])))
            opt.step()

    def grads(self, scale=1.0):
        return [scale * torch.randn(param.shape, generator=self.random) for param in self.sides[0]]

    def state(self, i):
        """Of parameter i on both sides, all that a step writes."""
        return [
            {"param": params[i].detach()} | opt.state[params[i]]
            for params, opt in zip(self.sides, self.optimizers, strict=True)
        ]

    def check(self, what="") -> None:
        """That both sides agree; then let them start from equal state again."""
        for i in range(len(self.sides[0])):
            ours, theirs = self.state(i)
            assert ours.keys() == theirs.keys()
            compare(ours, theirs, f"{what}, tensor {i}")
            for name in ours:
                ours[name].copy_(theirs[name])


def compare(ours, theirs, what) -> None:
    exact = ours["param"].device.type == "cpu"
    for name in ours:
        if exact:
            one, other = (with_one_nan(side[name]) for side in (ours, theirs))
            bad = f"{what}: {name} differs in {torch.nonzero(one != other)[:3].tolist()}"
            assert same_bits(one, other), bad
        elif name.endswith("_q"):
            assert (ours[name].int() - theirs[name].int()).abs().max() <= 1, f"{what}: {name}"
        elif name not in ("param", "remainder"):
            close(ours[name], theirs[name], f"{what}: {name}", rtol=2e-6, atol=0)
    if not exact:
        values = [value(side) for side in (ours, theirs)]
        tolerance = {BF16: 2**-7, F32: 2e-6 if ours.get("remainder", ours["step"]).dtype != torch.int8 else 2**-14}
        close(*values, what, rtol=tolerance[values[0].dtype], atol=1e-7)


def close(ours, theirs, what, **tolerance) -> None:
    torch.testing.assert_close(ours, theirs, equal_nan=True, msg=what, **tolerance)


def value(side):
    return masters.join(side["param"], side["remainder"]) if "remainder" in side else side["param"]


def with_one_nan(tensor):
    return torch.where(torch.isnan(tensor), torch.nan, tensor) if tensor.is_floating_point() else tensor


@every_mix
def test_steps_from_equal_state(device, backends, placed, mix):
    """Several chunks and places, two groups of options, a tensor that now and then has no gradient."""
    pair = Pair(device, backends, mix, SHAPES, betas=(0.9, 0.999))
    for opt, params in zip(pair.optimizers, pair.sides, strict=True):
        extra = parameter(torch.ones(64, 64, device=device, dtype=mix[0]))
        opt.add_param_group({"params": [extra], "betas": (0.3, 0.95), "maximize": True, "eps": 1e-4})
        params.append(extra)
    for step in range(2):
        grads = pair.grads(10.0**-step)
        if step == 1:
            grads[2] = None
        pair.step(grads)
        pair.check(f"step {step}")


@pytest.mark.parametrize("offset", [1, 8])
@pytest.mark.parametrize("mix", [MIXES[0], MIXES[3], MIXES[-1]], ids=["float32", "int8_master", "float32_moments"])
def test_tensors_off_16_bytes(device, backends, placed, mix, offset):
    pair = Pair(device, backends, mix, SHAPES[-1:], offset=offset)
    for step in range(2):
        pair.step(pair.grads())
        pair.check(f"step {step}")


@pytest.mark.parametrize("mix", MIXES[-4:], ids=["int16", "int8", "int16_float32_grad", "int8_float32_grad"])
def test_masters_with_amsgrad_and_of_any_shape(device, backends, monkeypatch, mix):
    """Also where a row is divided anywhere, as ranks do with float32 moments: 49 / 49 is below 1 in float32."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: Place(number, 7, 49, 1000))
    pair = Pair(device, backends, mix, [(64, 64), (5,), (CHUNK + 13,), ()], amsgrad=True)
    for step in range(2):
        pair.step(pair.grads(3.0 if step else 1.0))
        pair.check(f"step {step}")


SPECIAL = {
    "zero": lambda x: x * 0,
    "all equal": lambda x: torch.full_like(x, 0.5),
    "one non-zero": lambda x: torch.where(torch.arange(64) == 17, x, 0.0),
    "subnormal": lambda x: x * 1e-42,
    "scale below a normal number": lambda x: x * 1e-38,
    "square below a number": lambda x: x * 1e-25,
    "scale without a normal reciprocal": lambda x: torch.where(torch.arange(64) == 3, 3e38, x),
    "inf": lambda x: torch.where(torch.arange(64) == 63, torch.inf, x),
    "-inf": lambda x: torch.where(torch.arange(64) == 0, -torch.inf, x),
    "nan": lambda x: torch.where(torch.arange(64) == 31, torch.nan, x),
    "square above all numbers": lambda x: torch.where(torch.arange(64) == 9, 1e21, x),
    "an outlier": lambda x: torch.where(torch.arange(64) == 40, 3000 * x, x),
    "far down": lambda x: x * 10.0 ** -(torch.arange(64) % 12),
}


@pytest.mark.parametrize("mix", [*MIXES[:2], MIXES[3], MIXES[4]], ids=lambda mix: "-".join(map(str, mix)))
def test_special_groups(device, backends, mix):
    """As gradients from zero state, and from random state; beside ordinary groups, which do not notice."""
    pair = Pair(device, backends, mix, [(64, 64)])
    for step in range(3):
        (grad,) = pair.grads()
        for i, change in enumerate(SPECIAL.values()):
            grad[2 * i] = change(grad[2 * i])
        before = {name: tensor.clone() for name, tensor in pair.state(0)[0].items()}
        pair.step([grad])
        ours = pair.state(0)[0]
        for i, name in enumerate(SPECIAL):
            kept = name in ("inf", "-inf", "nan", "square above all numbers", "scale without a normal reciprocal")
            if step and kept:  # its moments, the parameter not
                for stored in ("exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale"):
                    assert torch.equal(ours[stored][2 * i], before[stored][2 * i]), f"{name}: {stored}"
        pair.check(f"step {step}")
        if step == 1:
            random_state(pair)


def random_state(pair) -> None:
    """Any codes, with scales of any size, zero, near the largest number, and one that no step stores."""
    for i, params in enumerate(zip(*pair.sides, strict=True)):
        shape = params[0].shape
        codes = torch.randint(-127, 128, shape, generator=pair.random)
        codes_sq = torch.randint(0, 256, shape, generator=pair.random)
        scales = 10.0 ** torch.randint(-45, 38, (2, shape[0], 1), generator=pair.random, dtype=F32)
        scales[0, -1] = torch.inf
        for side in pair.state(i):
            side["exp_avg_q"].copy_(codes)
            side["exp_avg_sq_q"].copy_(codes_sq)
            side["exp_avg_scale"].copy_(scales[0])
            side["exp_avg_sq_scale"].copy_(scales[1])


@pytest.mark.parametrize("master", ["int16", "int8"])
def test_special_masters(device, backends, master):
    """Every exponent, halves between two parameters, parameters that were set from outside, NaN and infinity."""
    pair = Pair(device, backends, (BF16, F32, F32, master), [(128, 128)], lr=1e-9, weight_decay=0.0)
    pair.step([torch.zeros(128, 128)])
    high = torch.arange(-(1 << 15), 1 << 15, 4).view(128, 128).to(torch.int16)
    low = torch.randint(-(1 << 15), 1 << 15, (128, 128), generator=pair.random)
    low[::7], low[1::7], low[2::7] = -(1 << 15), (1 << 15) - 1, 0
    for side in pair.state(0):
        side["param"].copy_(high.view(BF16))
        side["remainder"].copy_(low if master == "int16" else low >> 8)
    for step in range(2):
        pair.step([torch.zeros(128, 128)])
        pair.check(f"step {step}")


def test_rounding_depends_on_number_step_and_index(device, backends, placed):
    """Of equal values; so that the tests above, whose values are random, could tell."""
    pair = Pair(device, backends, MIXES[0], [(64, 64)] * 4)
    seen = []
    for _ in range(2):
        pair.step([torch.full((64, 64), 0.3) * torch.linspace(0.1, 1, 64)] * 4)
        seen += [pair.state(i)[0]["exp_avg_sq_q"].clone() for i in range(4)]
        pair.check()
    assert len({tuple(codes.reshape(-1).tolist()) for codes in seen}) == len(seen)
    for codes in seen:
        assert len({tuple(row) for row in codes.tolist()}) == len(codes), "rows are rounded alike"


def test_no_code_exceeds_the_largest(device, backends, monkeypatch):
    """255 + (65535 + 1/2) / 65536 rounds to 256."""
    random = eight_bit.randoms(torch.arange(1 << 20), 3, torch.tensor(1)) >> 16
    index = int(torch.nonzero(random == 0xFFFF)[0])
    place = Place(3, index // 64 * 64, 4096, 4096)
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: place)
    pair = Pair(device, backends, MIXES[0], [(64, 64)])
    pair.step([torch.ones(64, 64)])
    assert int(pair.state(0)[0]["exp_avg_sq_q"][0, index % 64]) == 255
    pair.check()


def test_fractions(device, backends):
    """Of every lane, exactly."""
    from support.triton_kernels import fractions

    lanes = torch.arange(1 << 16, device=device, dtype=torch.int64)
    random = lanes << 16 | 0xFF00 | lanes & 0xFF
    u, u_sq = fractions(random)
    assert torch.equal(u, ((lanes & 0xFF).float() + 0.5) / 256)
    assert torch.equal(u_sq, (lanes.float() + 0.5) / 65536)
