"""Parameters with 8-bit moments and masters under a backend and under the reference, compared after every step."""

import pytest
import torch

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import Place, masters
from support.tensors import generator, parameter, same_bits, set_grad

F32, BF16 = torch.float32, torch.bfloat16
#: Elements: more groups than the kernel takes at once, in the interpreter or compiled, and no multiple of that.
CHUNK = 35 * 64
SHAPES = [(4, 1024), (64, 64), (33, 192)]  # the last is two chunks and a piece
#: (parameter, gradient, moments, masters)
MIXES = [(F32, F32, torch.int8, None)]
MIXES += [(BF16, grad, torch.int8, master) for grad in (BF16, F32) for master in (None, "int16", "int8")]
MIXES += [(BF16, grad, F32, master) for grad in (BF16, F32) for master in ("int16", "int8")]


def name_of(mix):
    return "-".join(str(x).removeprefix("torch.") for x in mix)


every_mix = pytest.mark.parametrize("mix", MIXES, ids=name_of)
#: Rounding is by where elements lie in the whole parameter: in one piece, across 2^32 amid a chunk, in short runs whose
#: ends are anywhere, in long ones far apart.
PLACES = [
    Place(3, 0, 1 << 20, 1 << 20),
    Place(1, (1 << 32) - 640, 1 << 20, 1 << 20),
    Place(70000, 128, 192, 960),
    Place(5, 64, 1280, 3 << 32),
]


class Pair:
    """The same parameters under two optimizers, the second being the oracle.

    Args:
        offset: elements by which parameters and gradients lie off their memory's begin.
        exact: whether all bits are to agree; None: on the CPU.
    """

    def __init__(self, device, backends, mix, shapes, *, offset=0, exact=None, **options) -> None:
        self.mix, self.offset, self.random = mix, offset, generator(1)
        self.exact = device.type == "cpu" if exact is None else exact
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
            compare(ours, theirs, f"{what}, tensor {i}", self.exact)
            for name in ours:
                ours[name].copy_(theirs[name])


def compare(ours, theirs, what, exact) -> None:
    """Bits; or else codes within one, and values within a unit in the last place of what is stored."""
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
