"""Who arrives: the joint law of a job's size and of what is predicted for it.

A law has two forms. The formulas take it as weighted points, for which they are exact; a smooth law
is cut into so many that the result has five correct digits. The simulation draws from the law
itself and knows nothing of the points. (Only a joint density is drawn from its points.)

Sizes and predictions have one unit, which is also that of time: the server works off 1 per 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError

Array = NDArray[np.float64]

POINTS: Final = 2**16  #: of a law, at most; samples and densities have their own number
NOISE_POINTS: Final = 128  #: predictions of a size, at least, where they are noisy
DENSITY_POINTS: Final = 512  #: on each axis of a joint density
_LOGITS: Final = (-35.0, 120.0)  #: quantiles from e^-35 to 1 - e^-120 are looked at
_GOLDEN_RATIO: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class SizeLaw:
    """The law of a job's size.

    Args:
        points: at most so many sizes, above 0, and their probabilities, both of shape (n,).
        draw: so many independent sizes.
    """

    points: Callable[[int], tuple[Array, Array]]
    draw: Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True)
class JobLaw:
    """The joint law of a job's size and of its prediction.

    Args:
        sizes: shape (n,), above 0.
        predictions: of those sizes, shape (n,), not negative.
        weights: the probabilities of those pairs, shape (n,), sum 1.
        draw: so many independent pairs, as sizes and predictions.
    """

    sizes: Array
    predictions: Array
    weights: Array
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]]

    @property
    def mean_size(self) -> float:
        """The mean size."""
        return float(self.weights @ self.sizes)

    def without_predictions(self) -> JobLaw:
        """The same sizes, all predicted alike: then the order is that of arrival."""

        def draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
            sizes, _ = self.draw(random, count)
            return sizes, np.zeros(count)

        return JobLaw(self.sizes, np.zeros(len(self.sizes)), self.weights, draw)


def exponential(mean: float = 1.0) -> SizeLaw:
    """Exponential sizes: M/M/1."""
    _check_positive("the mean size", mean)
    return _smooth(lambda hazard: mean * hazard)


def weibull(shape: float, mean: float = 1.0) -> SizeLaw:
    """Weibull sizes; shape 1 is exponential, below 1 the tail is heavier."""
    if not 0.2 <= shape <= 20:
        raise InputError(f"the shape of a Weibull law must be from 0.2 to 20, got {shape:g}")
    _check_positive("the mean size", mean)
    scale = mean / math.gamma(1 + 1 / shape)
    return _smooth(lambda hazard: scale * hazard ** (1 / shape))


def lognormal(sigma: float, mean: float = 1.0) -> SizeLaw:
    """Lognormal sizes; `sigma` is the standard deviation of their logarithm."""
    from scipy.special import ndtri_exp

    if not 0 < sigma <= 4:
        raise InputError(
            f"the sigma of a lognormal law must be above 0 and at most 4, got {sigma:g}"
        )
    _check_positive("the mean size", mean)
    return _smooth(lambda hazard: mean * np.exp(-sigma * ndtri_exp(-hazard) - sigma**2 / 2))


def deterministic(size: float = 1.0) -> SizeLaw:
    """All jobs alike: M/D/1."""
    _check_positive("the size", size)
    return SizeLaw(lambda _: (np.array([size]), np.ones(1)), lambda _, count: np.full(count, size))


def size_samples(sizes: ArrayLike) -> SizeLaw:
    """Sizes that were seen, each equally likely.

    Args:
        sizes: shape (n,), above 0.

    Raises:
        InputError: there are none, or one is not a number above 0.
    """
    ascending: Array = np.sort(_checked("size", sizes))
    if ascending[0] <= 0:
        raise InputError(f"every size must be above 0, got {ascending[0]:g}")

    def points(limit: int) -> tuple[Array, Array]:
        if len(ascending) <= limit:
            return ascending, np.full(len(ascending), 1 / len(ascending))
        # Neighbours become one point, but in both tails each size stays a point of its own.
        quantiles = 1 / (1 + np.exp(-_logits(np.arange(limit + 1) / limit)))
        bounds = np.unique(np.rint(quantiles * len(ascending)).astype(np.int64))
        counts = np.diff(bounds)
        return np.add.reduceat(ascending, bounds[:-1]) / counts, counts / len(ascending)

    return SizeLaw(points, lambda random, count: random.choice(ascending, count))


def perfectly_predicted(law: SizeLaw, limit: int = POINTS) -> JobLaw:
    """Every prediction is the size; `limit` is the largest number of points."""

    def draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
        sizes = law.draw(random, count)
        return sizes, sizes

    sizes, weights = law.points(limit)
    return JobLaw(sizes, sizes, weights, draw)


def exponential_prediction(sizes: Array, noise: Array) -> Array:
    """Exponential with the size as its mean: the noisy predictor of Mitzenmacher (1902.00732)."""
    return sizes * noise


def noisily_predicted(
    law: SizeLaw, predictor: Callable[[Array, Array], Array] = exponential_prediction
) -> JobLaw:
    """Predictions that are a function of the size and of independent noise.

    Args:
        law: of the sizes.
        predictor: called with sizes and noise, both of shape (n,), gives the predictions, shape
            (n,), not negative. The noise is exponential with mean 1: a function of it has any law
            that is wanted.

    Raises:
        InputError: a prediction is negative or not a number.
    """

    def draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
        sizes = law.draw(random, count)
        return sizes, predictor(sizes, random.standard_exponential(count))

    sizes, weights = law.points(POINTS // NOISE_POINTS)
    count = POINTS // len(sizes)
    # Each size has its noise at other places, lest the grid line up with the corners of the rule.
    shifts = np.arange(len(sizes))[:, None] * _GOLDEN_RATIO % 1
    noise, chances = _exponential_points((np.arange(count) + shifts) / count)
    chances *= (weights / chances.sum(axis=1))[:, None]
    sizes = np.repeat(sizes, count)
    predictions = _checked("prediction", predictor(sizes, noise.ravel()))
    if len(predictions) != len(sizes) or predictions.min() < 0:
        raise InputError(
            "a predictor must give one prediction for each size, none of them negative"
        )
    return JobLaw(sizes, predictions, chances.ravel(), draw)


def job_samples(sizes: ArrayLike, predictions: ArrayLike) -> JobLaw:
    """Pairs of size and prediction that were seen, each equally likely.

    Args:
        sizes: shape (n,), above 0.
        predictions: shape (n,), not negative, in the unit of the sizes.

    Raises:
        InputError: the lengths differ, there are none, or one is out of range.
    """
    size, prediction = _checked("size", sizes), _checked("prediction", predictions)
    if len(size) != len(prediction):
        raise InputError(
            f"there are {len(size):,} sizes but {len(prediction):,} predictions: give one for each"
        )
    if size.min() <= 0 or prediction.min() < 0:
        raise InputError("every size must be above 0, and no prediction may be negative")
    return _weighted(size, prediction, np.full(len(size), 1 / len(size)))


def job_density(
    density: Callable[[Array, Array], Array],
    sizes: tuple[float, float],
    predictions: tuple[float, float],
) -> JobLaw:
    """A joint density g(x, r) of size x and prediction r.

    Args:
        density: called with sizes and predictions that broadcast, gives their density.
        sizes: from where to where, above 0; what lies outside is left out.
        predictions: the same for predictions, above 0.

    Raises:
        InputError: the density does not integrate to 1 within 0.1 %.
    """
    x, width_x = _logarithmic(*sizes)
    r, width_r = _logarithmic(*predictions)
    # The density of the logarithms, times the area of a cell.
    mass = density(x[:, None], r[None, :]) * x[:, None] * r[None, :] * (width_x * width_r)
    total = float(mass.sum())
    if not (np.all(mass >= 0) and abs(total - 1) < 1e-3):
        raise InputError(
            f"the density integrates to {total:.4f} between those bounds, not to 1: "
            "widen the bounds or mend the density"
        )
    points = np.meshgrid(x, r, indexing="ij")
    return _weighted(points[0].ravel(), points[1].ravel(), mass.ravel() / total)


def _smooth(size_at: Callable[[Array], Array]) -> SizeLaw:
    """The law of a function of an exponential variable with mean 1."""

    def points(limit: int) -> tuple[Array, Array]:
        hazards, weights = _exponential_points((np.arange(limit) + 0.5) / limit)
        return size_at(hazards), weights / weights.sum()

    return SizeLaw(points, lambda random, count: size_at(random.standard_exponential(count)))


def _exponential_points(place: Array) -> tuple[Array, Array]:
    """Values of an exponential variable at evenly spaced places from 0 to 1, and their weights.

    They are fine in the middle and reach far into both tails: a double exponential quadrature
    (Takahasi and Mori 1974), whose error for smooth functions falls exponentially with the number
    of places. The weights are in proportion; their sum is the caller's.
    """
    logits = _logits(place)
    weights = np.sqrt(1 + logits**2) / (2 + np.exp(logits) + np.exp(-logits))
    return np.logaddexp(0, logits), weights


def _logits(place: Array) -> Array:
    """The logits of quantiles at evenly spaced places from 0 to 1."""
    low, high = np.arcsinh(_LOGITS)
    result: Array = np.sinh(low + (high - low) * place)
    return result


def _weighted(sizes: Array, predictions: Array, weights: Array) -> JobLaw:
    """A law that is drawn from its points."""

    def draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
        chosen = random.choice(len(weights), count, p=weights)
        return sizes[chosen], predictions[chosen]

    return JobLaw(sizes, predictions, weights, draw)


def _logarithmic(low: float, high: float) -> tuple[Array, float]:
    """Midpoints of equal steps of the logarithm, and the width of a step."""
    if not (0 < low < high < math.inf):
        raise InputError(f"the bounds must be numbers above 0 that increase, got {low} and {high}")
    width = math.log(high / low) / DENSITY_POINTS
    return low * np.exp(width * (np.arange(DENSITY_POINTS) + 0.5)), width


def _checked(what: str, values: ArrayLike) -> Array:
    try:
        checked = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"every {what} must be a number") from None
    if checked.ndim != 1 or len(checked) == 0 or not np.all(np.isfinite(checked)):
        raise InputError(f"give at least one {what}, all of them finite numbers")
    return checked


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a number above 0, got {value}")
