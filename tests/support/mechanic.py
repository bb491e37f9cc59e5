"""Mechanic over AdamW in float64, as the paper has it: with the starting point kept, and no thought of storage. Run by

    python -m support.mechanic      (in tests/, with optax 0.2.8 and jax installed)

it writes `data/mechanic_optax.json`: what optax makes of the same problems, in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

ORACLE = Path(__file__).parent / "data" / "mechanic_optax.json"
STEPS, SHAPES = 120, ((3, 4), (5,))
N = sum(math.prod(shape) for shape in SHAPES)
OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
#: The LR of each step: none, or a warm-up to a peak of 1 that comes down to 0.1.
LRS = {
    "constant": [1.0] * STEPS,
    "warm-up": [min((t + 1) / 20, 1.0 - 0.9 * max(0, t - 20) / STEPS) for t in range(STEPS)],
}


def start() -> list[float]:
    return [math.sin(1.7 * i + 0.3) for i in range(N)]


def gradient(x: Sequence[float], step: int) -> list[float]:
    """Of a quadratic loss with curvatures 0.5 to 2, and noise."""
    curvature = [0.5 + 1.5 * ((5 * i) % N) / N for i in range(N)]
    target = [math.cos(0.9 * i) for i in range(N)]
    return [
        a * (value - goal) + 0.3 * math.sin(3.1 * i + 0.77 * step * step)
        for i, (a, value, goal) in enumerate(zip(curvature, x, target, strict=True))
    ]


class AdamW64:
    """The base optimizer: returns its update of each number, weight decay included."""

    def __init__(self, n: int, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m, self.v, self.step = [0.0] * n, [0.0] * n, 0

    def __call__(self, x: Sequence[float], g: Sequence[float], lr: float) -> list[float]:
        self.step += 1
        b1, b2 = self.betas
        self.m = [b1 * m + (1 - b1) * gi for m, gi in zip(self.m, g, strict=True)]
        self.v = [b2 * v + (1 - b2) * gi * gi for v, gi in zip(self.v, g, strict=True)]
        c1, c2 = 1 - b1**self.step, 1 - b2**self.step
        return [
            -lr * (m / c1 / (math.sqrt(v / c2) + self.eps) + self.weight_decay * xi)
            for m, v, xi in zip(self.m, self.v, x, strict=True)
        ]


def norm(x: Sequence[float]) -> float:
    return math.sqrt(sum(xi * xi for xi in x))


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(xi * yi for xi, yi in zip(x, y, strict=True))


class Mechanic64:
    """The rule of the reference, written apart from the package."""

    def __init__(self, x0: Sequence[float], n: int = 6, s_init: float = 1e-6, decay: float = 0.01, eps: float = 1e-8):
        self.x0, self.s_init, self.decay, self.eps = list(x0), s_init, decay, eps
        self.betas = [1 - 0.1**i for i in range(1, n + 1)]
        self.s, self.m, self.v, self.r = [s_init] * n, [0.0] * n, [0.0] * n, [0.0] * n

    def step(self, x: Sequence[float], g: Sequence[float], u: Sequence[float]) -> list[float]:
        scale, n = sum(self.s), len(self.betas)
        c = self.decay * scale * norm(g) / (norm(x) + self.eps)
        dp = [(start - xi) / (scale + self.eps) for start, xi in zip(self.x0, x, strict=True)]
        h = dot([gi + c * xi for gi, xi in zip(g, x, strict=True)], dp)
        for i, beta in enumerate(self.betas):
            clipped = max(-self.m[i], min(self.m[i], h))
            self.m[i] = max(beta * self.m[i], abs(h) + self.eps)
            self.v[i] = beta**2 * self.v[i] + h * h
            self.r[i] = beta * self.r[i] + clipped * self.s[i]
            self.s[i] = (self.s_init / n * self.m[i] + max(0.0, self.r[i])) / (math.sqrt(self.v[i]) + self.eps)
        return [start - sum(self.s) * (d - ui) for start, d, ui in zip(self.x0, dp, u, strict=True)]


def run(lrs: Sequence[float], grad: Callable[[Sequence[float], int], Sequence[float]] = gradient) -> list[dict]:
    """S and parameters after every step."""
    x, adamw = start(), AdamW64(N, **OPTIONS)
    tuner, rows = Mechanic64(x), []
    for step, lr in enumerate(lrs):
        g = list(grad(x, step))
        x = tuner.step(x, g, adamw(x, g, lr))
        rows.append({"s": sum(tuner.s), "x": list(x)})
    return rows


def optax_run(lrs: Sequence[float]) -> list[dict]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    b1, b2 = OPTIONS["betas"]
    table = jnp.array(lrs)
    base = optax.adamw(lambda t: table[t], b1=b1, b2=b2, eps=OPTIONS["eps"], weight_decay=OPTIONS["weight_decay"])
    optimizer = optax.contrib.mechanize(base)
    x = jnp.array(start(), dtype=jnp.float64)
    state, rows = optimizer.init(x), []
    for step in range(len(lrs)):
        g = jnp.array(gradient(x.tolist(), step))
        updates, state = optimizer.update(g, state, x)
        x = optax.apply_updates(x, updates)
        rows.append({"s": float(state.s.sum()), "x": x.tolist()})
    return rows


def main() -> None:
    import optax

    kept = {}
    for name, lrs in LRS.items():
        rows = optax_run(lrs)
        kept[name] = {str(t): rows[t - 1] for t in (1, 2, 3, 5, 10, 20, 50, 80, STEPS)}
    ORACLE.parent.mkdir(exist_ok=True)
    ORACLE.write_text(json.dumps({"optax": optax.__version__, "runs": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
