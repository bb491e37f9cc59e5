"""Mechanic over AdamW on tensors in float64, with the starting point kept: the oracle of every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from greedylr_fused.tensors import masters
from support.tensors import adamw64, parameter, set_grad

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
F32, F64, BF16, F16, I8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8
#: Dtypes of parameter and gradient, state_dtype and master_weights: all that a tuner moves.
MIXES = {
    "f32": (F32, F32, None, None),
    "f64": (F64, F64, None, None),
    "f32-bf16 grad": (F32, BF16, None, None),
    "f32-f16 grad": (F32, F16, None, None),
    "f32-bf16 moments": (F32, F32, BF16, None),
    "f32-codes": (F32, F32, I8, None),
    "c64": (torch.complex64, torch.complex64, None, None),
    "bf16+16": (BF16, BF16, None, "int16"),
    "bf16+16-f32 grad": (BF16, F32, None, "int16"),
    "bf16+16-codes": (BF16, BF16, I8, "int16"),
    "bf16+8": (BF16, BF16, None, "int8"),
    "bf16+8-codes": (BF16, F32, I8, "int8"),
}


class Tuned64:
    """The rule, tensor by tensor; one without a gradient keeps the S that wrote it last, and counts for nothing."""

    def __init__(self, params: Sequence[Tensor], lr: float = 1.0, **options) -> None:
        self.x = [p.detach().to(F64).clone() for p in params]
        self.x0 = [x.clone() for x in self.x]
        self.lr, self.options = lr, OPTIONS | {"maximize": False} | options
        self.moments = [{"exp_avg": torch.zeros_like(x), "exp_avg_sq": torch.zeros_like(x)} for x in self.x]
        self.steps, self.written_at = [0] * len(self.x), [0.0] * len(self.x)
        self.beta = [1 - 0.1**i for i in range(1, 7)]
        self.s, self.m, self.v, self.r = [1e-6] * 6, [0.0] * 6, [0.0] * 6, [0.0] * 6

    @property
    def scale(self) -> float:
        return sum(self.s)

    def step(self, grads: Sequence[Tensor | None]) -> None:
        """With gradients as AdamW uses them, unscaled and clipped."""
        sign = -1.0 if self.options["maximize"] else 1.0
        given = [(i, g.to(F64)) for i, g in enumerate(grads) if g is not None]
        dp = {i: (self.x0[i] - self.x[i]) / (self.written_at[i] + 1e-8) for i, _ in given}
        g_norm, x_norm = (math.sqrt(sum(float(t.square().sum()) for t in ts)) for ts in self._lists(given))
        h = sum(sign * float((g * dp[i]).sum()) for i, g in given)
        h += 0.01 * self.scale * g_norm / (x_norm + 1e-8) * sum(float((self.x[i] * dp[i]).sum()) for i, _ in given)
        for k, beta in enumerate(self.beta):
            clipped = max(-self.m[k], min(self.m[k], h))
            self.m[k] = max(beta * self.m[k], abs(h) + 1e-8)
            self.v[k] = beta**2 * self.v[k] + h * h
            self.r[k] = beta * self.r[k] + clipped * self.s[k]
            self.s[k] = (1e-6 / 6 * self.m[k] + max(0.0, self.r[k])) / (math.sqrt(self.v[k]) + 1e-8)
        for i, g in given:
            self._update(i, g, dp[i])

    def _lists(self, given):
        return [g for _, g in given], [self.x[i] for i, _ in given]

    def _update(self, i: int, g: Tensor, dp: Tensor) -> None:
        self.steps[i] += 1
        old, x, options = self.moments[i], self.x[i], {**self.options, "lr": self.lr, "step": self.steps[i]}
        new, _ = adamw64(torch.zeros_like(x), g, old["exp_avg"], old["exp_avg_sq"], None, **options)
        u = new.pop("param") - self.lr * self.options["weight_decay"] * x
        self.moments[i], self.written_at[i] = new, self.scale
        self.x[i] = self.x0[i] - self.scale * (dp - u)


def values(opt) -> list[Tensor]:
    """Parameters as the tuner moves them, in float64 and real: with the remainders of their masters."""
    found = []
    for group in opt.param_groups:
        for p in group["params"]:
            p_, state = p.detach(), opt.state.get(p, {})
            whole = masters.join(p_, state["remainder"]) if "remainder" in state else p_
            found.append((torch.view_as_real(whole) if whole.is_complex() else whole).to(F64, copy=True))
    return found


def gradients(shapes, step: int, dtype=F64) -> list[Tensor]:
    """Some that mostly agree from step to step, so that S grows."""
    source = torch.Generator().manual_seed(step)
    found = []
    for i, shape in enumerate(shapes):
        lasting = torch.cos(torch.arange(math.prod(shape), dtype=F64) + i).view(shape)
        noise = torch.randn(shape, generator=source, dtype=F64)
        found.append((lasting + 0.5 * noise).to(dtype if not dtype.is_complex else F32).to(dtype))
    return found


def starts(shapes) -> list[Tensor]:
    source = torch.Generator().manual_seed(99)
    return [0.1 * torch.randn(shape, generator=source, dtype=F64) for shape in shapes]


def params(shapes, dtype, device) -> list[torch.nn.Parameter]:
    return [parameter(start.to(device, dtype if not dtype.is_complex else F32).to(dtype)) for start in starts(shapes)]


def give(opt, grads: Sequence[Tensor | None]) -> None:
    listed = [p for group in opt.param_groups for p in group["params"]]
    for param, grad in zip(listed, grads, strict=True):
        set_grad(param, None if grad is None else grad.to(param.device))
