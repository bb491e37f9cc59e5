"""What the tests share: comparison by bits, AdamW in float64, and the tolerance that torch's own error sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from greedylr_fused import FusedAdamW
from greedylr_fused.step.mirror import Metrics

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
#: For float64 the oracle is itself rounded. Most with clipping: the coefficient by three half ulp (norm, sum,
#: quotient), its product with the gradient by one more, all doubled in the square, and the formula's own operations.
ORACLE_ULP = 8
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Budget:
    """How much random repetition the time allows."""

    control_steps: dict[str, int]
    """Random observations per backend, compared with transformers."""
    trajectory: int
    """Steps of a free-running trajectory."""
    rounds: int
    """Re-synchronised random steps per configuration."""
    elements: int
    """Size of the largest tensor where one is wanted that keeps several threads busy."""


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bits(tensor: Tensor) -> Tensor:
    """The memory of a tensor's elements, in logical order."""
    tensor = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def assert_same_bits(a: Tensor, b: Tensor, what: str = "") -> None:
    assert same_bits(a, b), f"{what}: {a} {b}"


def snapshot(opt: torch.optim.Optimizer, *, control: bool = True) -> dict[str, Tensor]:
    """Copies of all that a step may change, by name."""
    found = {}
    for i, param in enumerate(p for group in opt.param_groups for p in group["params"]):
        found[f"param {i}"] = param.detach().clone()
        for name, value in opt.state.get(param, {}).items():
            found[f"{name} {i}"] = value.detach().clone()
    if control:
        found["control"] = opt._control.vector.clone()
    return found


def latest(opt: FusedAdamW) -> Metrics:
    """The snapshot of the last step: `metrics()` alone may show an older one, since it waits for nothing."""
    for _ in range(2):  # the first may find a copy under way that was asked for earlier
        opt.metrics()
        opt._control.vector.tolist()  # waits for all that was enqueued
    return opt.metrics()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_same_bits(a[name], b[name], name)


def parameter(values: Tensor, grad: Tensor | None = None) -> torch.nn.Parameter:
    """A parameter over exactly this memory, with this gradient, in whatever dtype that is."""
    param = torch.nn.Parameter(values)
    set_grad(param, grad)
    return param


def set_grad(param: Tensor, grad: Tensor | None) -> None:
    if grad is not None and grad.dtype != param.dtype:
        if not hasattr(torch.Tensor, "grad_dtype"):
            pytest.skip("this version of torch keeps every gradient in its parameter's dtype")
        param.grad_dtype = grad.dtype
    param.grad = grad


def flat(tensor: Tensor) -> Tensor:
    """A contiguous real copy of the values."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).clone(memory_format=torch.contiguous_format)


def adamw64(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, *, step, lr, betas, eps, weight_decay, maximize):
    """Loshchilov & Hutter, algorithm 2 in float64, written apart from the package. Returns the new
    values and by how much the parameter moves per unit of the first moment.
    """
    grad = -grad if maximize else grad
    exp_avg = betas[0] * exp_avg + (1 - betas[0]) * grad
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    largest = exp_avg_sq if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq, exp_avg_sq)
    gain = lr / (1 - betas[0] ** step) / ((largest / (1 - betas[1] ** step)).sqrt() + eps)
    new = {"param": param * (1 - lr * weight_decay) - gain * exp_avg, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        new["max_exp_avg_sq"] = largest
    return new, gain


def ulp(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of `dtype` at these float64 magnitudes."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(scale.abs().clamp(min=info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(scale, info.eps), exponent)


class Measured:
    """Worst errors in ulp by quantity: ours and torch's, against float64, over the same inputs."""

    def __init__(self) -> None:
        self.ours: dict[str, float] = {}
        self.torchs: dict[str, float] = {}

    def add(self, key: str, ours: Tensor, torchs: Tensor, truth: Tensor, scale: Tensor) -> None:
        if truth.numel():
            unit = ulp(scale, ours.dtype)
            for worst, value in ((self.ours, ours), (self.torchs, torchs)):
                error = ((value.double() - truth).abs() / unit).max().item()
                assert not math.isnan(error), key
                worst[key] = max(worst.get(key, 0.0), error)

    def check(self) -> None:
        """The tolerance of the contract: at most twice torch's error, plus one ulp."""
        for key, error in self.ours.items():
            slack = 1 + ORACLE_ULP * ("float64" in key)
            assert error <= 2 * self.torchs[key] + slack, f"{key}: {error} ulp, torch {self.torchs[key]} ulp"


@dataclass
class Before:
    """One tensor before a step, as contiguous real copies."""

    param: Tensor
    grad: Tensor
    moments: dict[str, Tensor]
    step: float
    group: dict


def torch_step(befores: list[Before], prepare: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
    """What torch's fused AdamW makes of these, in their dtype; mixed dtypes in the op-math type, rounded at the end."""
    results = []
    for b in befores:
        uniform = b.param.dtype == b.grad.dtype == b.moments["exp_avg"].dtype
        dtype = b.param.dtype if uniform else torch.float32
        param = parameter(b.param.to(dtype, copy=True), prepare(b.grad).to(dtype, copy=True))
        group = b.group
        keys = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
        opt = torch.optim.AdamW([param], lr=group["lr"], fused=True, **{key: group[key] for key in keys})
        opt.state[param] = {name: value.to(dtype, copy=True) for name, value in b.moments.items()}
        opt.state[param]["step"] = torch.tensor(b.step, dtype=torch.float32, device=param.device)
        opt.step()
        results.append({"param": param.detach().to(b.param.dtype)})
        results[-1] |= {name: opt.state[param][name].to(value.dtype) for name, value in b.moments.items()}
    return results


def state_of(opt: torch.optim.Optimizer, param: Tensor, group: dict) -> tuple[dict[str, Tensor], float]:
    state = opt.state.get(param, {})
    dtype = getattr(getattr(opt, "_engine", None), "state_dtype", None)
    names = MOMENTS if group["amsgrad"] else MOMENTS[:2]
    fresh = torch.zeros_like(param, dtype=None if param.is_complex() else dtype, memory_format=torch.preserve_format)
    return {name: flat(state.get(name, fresh)) for name in names}, float(state.get("step", 0.0))


def stepped(opt, *, step: Callable[[], object] | None = None, multiplier=1.0, prepare=lambda g: g, measured=None):
    """One step of the optimizer, checked: tensors with a gradient against float64 with torch's error as the measure,
    tensors without one for having kept every bit.

    Args:
        step: makes the step; default `opt.step()`.
        multiplier: factor of the gradient, exactly (1 / loss scale, clip coefficient).
        prepare: what torch's user would do to the gradient before the step.
        measured: errors are added to it and left unchecked.
    """
    befores: dict[Tensor, Before] = {}
    still: list[tuple[Tensor, Tensor]] = []
    for group, lr in zip(opt.param_groups, opt.read_lr(), strict=True):
        for param in group["params"]:
            if param.grad is None:
                kept = [param, *opt.state.get(param, {}).values()]
                still += [(tensor, tensor.detach().clone()) for tensor in kept]
            elif param not in befores:
                moments, count = state_of(opt, param, group)
                befores[param] = Before(flat(param), flat(param.grad), moments, count, dict(group) | {"lr": lr})
    (step or opt.step)()
    for tensor, old in still:
        assert_same_bits(tensor, old, "tensor without gradient")
    errors = Measured() if measured is None else measured
    results = torch_step(list(befores.values()), prepare)
    for (param, b), theirs in zip(befores.items(), results, strict=True):
        compare(errors, b, theirs, flat(param), {n: flat(opt.state[param][n]) for n in b.moments}, multiplier)
        assert float(opt.state[param]["step"]) == b.step + 1
    if measured is None:
        errors.check()


def compare(errors: Measured, b: Before, theirs: dict, param: Tensor, moments: dict, multiplier: float) -> None:
    group = b.group
    grad = b.grad.double() * multiplier
    old = {name: value.double() for name, value in b.moments.items()}
    options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "maximize")}
    truth, gain = adamw64(
        b.param.double(), grad, old["exp_avg"], old["exp_avg_sq"], old.get("max_exp_avg_sq"), step=b.step + 1, **options
    )
    # Where terms cancel, rounding is in units of the terms.
    scales = {"exp_avg": torch.maximum(old["exp_avg"].abs(), (1 - group["betas"][0]) * grad.abs())}
    scales["param"] = torch.maximum(b.param.double().abs(), gain * scales["exp_avg"])
    kind = "/".join(short(t.dtype) for t in (b.param, b.grad, b.moments["exp_avg"]))
    for name, ours in ({"param": param} | moments).items():
        scale = torch.maximum(truth[name].abs(), scales.get(name, truth[name]))
        errors.add(f"{name} {kind}", ours, theirs[name], truth[name], scale)


def spread(generator: torch.Generator, n: int, low: int, high: int) -> Tensor:
    """float64 [n]: normal numbers times powers of ten from 10^low to 10^high."""
    exponent = torch.rand(n, generator=generator, dtype=torch.float64) * (high - low) + low
    return torch.randn(n, generator=generator, dtype=torch.float64) * 10.0**exponent


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(opt, grads: Iterable[list[Tensor | None]], losses: Iterable[float] | None = None) -> None:
    """Steps with given gradients, one list per step in the order of the parameters."""
    params = [p for group in opt.param_groups for p in group["params"]]
    for row, loss in zip(grads, losses if losses is not None else iter(lambda: None, 0), strict=False):
        for param, grad in zip(params, row, strict=True):
            set_grad(param, None if grad is None else grad.clone())
        opt.step() if loss is None else opt.step(loss=loss)
