"""The next learning rate to try: where a Gaussian process, told the losses foreseen so far, knows least.

The authors of AutoLRS hand this to scikit-optimize with one initial point, the lower confidence bound and its defaults,
which are restated here: a Matern kernel of order 5/2 with an amplitude and white noise, over the logarithm of the LR
scaled to [0, 1], fitted to the normalised losses by maximum likelihood from three starts. What differs: the bound is
looked at on a grid, instead of at 10,000 random points of which five are refined, so that the same losses lead to the
same LR, and an LR that was tried is known as such.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

from greedylr_fused.autolrs.extra import module

Told = list[tuple[float, float]]
#: Standard deviations by which the bound lies below the mean: with so many, what is known least is tried next.
_KAPPA = 1e6
_GRID = 1001
#: How often LRs that were tried are told again, as where all losses are equal, before the widest gap is taken.
_AGAIN = 20


def first(low: float, high: float, seed: str) -> float:
    """Return an LR drawn from a log-uniform distribution."""
    return _rate(random.Random(seed).random(), low, high)


def following(told: Told, low: float, high: float, seed: int) -> tuple[float, Told]:
    """Return an LR that was not tried, and what the process is told from now on.

    Where the process asks for an LR that was tried, its loss is told again, which makes that place less uncertain.

    Args:
        told: LRs and the losses foreseen for them, in order; one or more.
        low: smallest LR.
        high: largest LR.
        seed: of the starts of the fit.
    """
    known, told = dict(told), list(told)
    grid = [_rate(index / (_GRID - 1), low, high) for index in range(_GRID)]
    for _ in range(_AGAIN):
        lr = grid[_least(_lower_bounds(told, grid, low, high, seed))]
        if lr not in known:
            return lr, told
        told.append((lr, known[lr]))
    nearest = [min(abs(math.log(lr / other)) for other in known) for lr in grid]
    return grid[_least([-distance for distance in nearest])], told


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _rate(position: float, low: float, high: float) -> float:
    """Return the LR at a position from 0 to 1, at both ends the bound itself."""
    if position in (0.0, 1.0):
        return high if position else low
    return low * math.exp(position * math.log(high / low))


def _lower_bounds(told: Told, grid: Sequence[float], low: float, high: float, seed: int) -> list[float]:
    """Return the lower confidence bound of the loss at each LR of the grid."""
    np = module("numpy")

    def positions(lrs: Sequence[float]) -> Any:
        return np.log(np.asarray(lrs) / low)[:, None] / math.log(high / low)

    model = _process(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters that end at a bound, as with equal losses
        model.fit(positions([lr for lr, _ in told]), np.asarray([loss for _, loss in told]))
    model.kernel_ = model.kernel_.k1  # without the noise: how uncertain the loss itself is, not a measurement of it
    mean, deviation = model.predict(positions(grid), return_std=True)
    found: list[float] = (mean - _KAPPA * deviation).tolist()
    return found


def _process(seed: int) -> Any:
    gaussian_process = module("sklearn.gaussian_process")
    kernels = gaussian_process.kernels
    smooth = kernels.ConstantKernel(1.0, (0.01, 1000.0)) * kernels.Matern(1.0, (0.01, 100.0), nu=2.5)
    noise = kernels.WhiteKernel(1.0, (1e-5, 1e5))
    return gaussian_process.GaussianProcessRegressor(
        smooth + noise, normalize_y=True, n_restarts_optimizer=2, random_state=seed
    )
