"""The loss at the end of a stage, foreseen from the losses of a trial: an exponential through de-noised losses.

Source: Jin, Zhou, Zhao, Zhu, Guo, Canini & Krishnamurthy, "AutoLRS: Automatic Learning-Rate Schedule by Bayesian
Optimization on the Fly" (arXiv 2105.10762, section 4.2), with the constants of the authors' code
(https://github.com/YuchenJin/autolrs).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from greedylr_fused.autolrs.extra import module

#: Losses that a forecast needs: a quadratic spline goes through three, and one may be dropped.
LEAST = 4
#: Rounds of dropping, and the share of losses that is dropped in each.
_ROUNDS, _SHARE = 10, 0.03
#: Where the search for the exponent ends, in its logarithm and in the sum of squares.
_TOLERANCE = 1e-5


def forecast(losses: Sequence[float], at: float, *, validation: bool = False) -> float:
    """Return the loss foreseen at a later position: `a exp(-e^b at) + c`, fitted to a smooth curve through the losses.

    A few noisy losses in the first half of them are dropped first. A curve that bends down foresees a loss far below
    all others, which may be negative, as in the authors' code: what is compared are forecasts of equal trials.

    Args:
        losses: finite, at positions 0, 1, 2, ...; 4 or more.
        at: position >= 0 of the loss to be foreseen.
        validation: validation losses, which are few: one is dropped at most. Otherwise ten rounds drop 3% each.
    """
    np = module("numpy")
    x = np.arange(len(losses), dtype=np.float64)
    y = np.asarray(losses, dtype=np.float64)
    smooth = spline(*without_outliers(x, y, validation=validation))(x)
    a, b, c = exponential(x, smooth)
    return float(a * np.exp(-np.exp(b) * at) + c)


def without_outliers(x: Any, y: Any, *, validation: bool) -> tuple[Any, Any]:
    """Return the points that stay: those farthest from the spline are dropped where they lie in the first half.

    Noise of early losses would bend the curve most, and the last ones tell where it goes. The first half is one of
    places, so that after a round later points come within reach, as in the authors' code. With fewer than 17 losses 3%
    are none.

    Args:
        x: float64 [n], rising.
        y: float64 [n].
        validation: drop the one farthest, once; otherwise 3% in each of ten rounds.
    """
    np = module("numpy")
    half = (len(x) - 1) // 2
    for _ in range(1 if validation else _ROUNDS):
        count = 1 if validation else round(_SHARE * len(x))
        order = np.argsort(np.abs(y - spline(x, y)(x)), kind="stable")
        farthest = order[len(order) - count :]
        kept = np.ones(len(x), dtype=bool)
        kept[farthest[farthest < half]] = False
        x, y = x[kept], y[kept]
    return x, y


def spline(x: Any, y: Any) -> Callable[[Any], Any]:
    """Return a quadratic smoothing spline through the points, as a function.

    The sum of its squared residuals is at most the number of points: FITPACK's default, which takes losses for numbers
    with an error of about 1, and to which it adds knots only beyond that. For most losses it is one parabola.
    """
    interpolate = module("scipy.interpolate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the sum could not be reached with the points at hand
        found: Callable[[Any], Any] = interpolate.UnivariateSpline(x, y, k=2)
        return found


def exponential(x: Any, y: Any) -> tuple[float, float, float]:
    """Return `a, b, c` of the curve `a exp(-e^b x) + c` nearest to the points, by the sum of squares.

    For any b the best a and c are those of linear least squares; b is searched from 0 on, by the simplex method of
    Nelder and Mead.

    Args:
        x: float64 [n], n > 2.
        y: float64 [n].
    """
    np, optimize = module("numpy"), module("scipy.optimize")

    def fitted(b: float) -> tuple[Any, Any]:
        columns = np.stack([np.exp(-np.exp(b) * x), np.ones(len(x))], axis=1)
        return columns, np.linalg.lstsq(columns, y, rcond=None)[0]

    def squares(b: Any) -> float:
        columns, found = fitted(b[0])
        return float(np.sum((columns @ found - y) ** 2))

    options = {"xatol": _TOLERANCE, "fatol": _TOLERANCE}
    b = float(optimize.minimize(squares, [0.0], method="Nelder-Mead", options=options).x[0])
    a, c = fitted(b)[1]
    return float(a), b, float(c)
