"""How far off the estimates of what remains are: means with intervals, by layer and by age.

Every output token of a test answer counts once, as in TRAIL's tables; the tokens of one answer
stand or fall together, so intervals come from drawing whole requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: What is compared: the prompt's prediction counted down; a prediction from prompt and age, made
#: anew at each token; the probe's newest prediction alone; the probe refined.
METHODS: Final = ("prompt_only", "reestimated", "raw", "refined")

_RESAMPLES: Final = 1_000
_DECILES: Final = 10


@dataclass(frozen=True)
class Figure:
    """A figure and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AgeGroup:
    """A tenth of all moments: those of about one age."""

    age_from: int  # output tokens so far, of the youngest
    age_to: int  # of the oldest
    states: int  # moments
    mean_remaining: float  # tokens
    mae_prompt_only: float  # tokens, as all below
    mae_reestimated: float
    mae_raw: float
    mae_refined: float


class Bootstrap:
    """Draws requests with replacement; the same draws for every figure, so ratios are paired."""

    def __init__(self, request: NDArray[np.int64], seed: int) -> None:
        """Make the draws.

        Args:
            request: [moments], which request each belongs to, n ≥ 1 of them.
            seed: of the draws.
        """
        _, self._request = np.unique(request, return_inverse=True)
        self._moments = np.bincount(self._request).astype(np.float64)
        count = self._moments.size
        random = np.random.default_rng(seed)
        self._draws = random.multinomial(count, np.full(count, 1 / count), _RESAMPLES).astype(
            np.float64
        )

    def mean(self, errors: NDArray[np.float64]) -> Figure:
        """The mean over all moments, [moments] → tokens."""
        sums = self._sums(errors)
        return _figure(
            sums.sum() / self._moments.sum(), (self._draws @ sums) / (self._draws @ self._moments)
        )

    def ratio(self, above: NDArray[np.float64], below: NDArray[np.float64]) -> Figure:
        """One mean over another: how many times smaller the error below is."""
        first, second = self._sums(above), self._sums(below)
        return _figure(first.sum() / second.sum(), (self._draws @ first) / (self._draws @ second))

    def _sums(self, errors: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(self._request, weights=errors), dtype=np.float64)


def _figure(value: float, resampled: NDArray[np.float64]) -> Figure:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Figure(float(value), float(low), float(high))


def by_age(
    age: NDArray[np.int64],
    remaining: NDArray[np.int64],
    errors: Mapping[str, NDArray[np.float64]],
) -> list[AgeGroup]:
    """Errors by tenth of the moments, youngest first; one age is never in two groups.

    Args:
        age: [moments].
        remaining: [moments].
        errors: for each of METHODS, absolute errors [moments].
    """
    bounds = np.unique(np.quantile(age, np.arange(1, _DECILES) / _DECILES, method="higher"))
    group = np.searchsorted(bounds, age, side="right")
    found = []
    for number in np.unique(group):
        own = group == number
        means = {f"mae_{name}": float(errors[name][own].mean()) for name in METHODS}
        found.append(
            AgeGroup(
                age_from=int(age[own].min()),
                age_to=int(age[own].max()),
                states=int(own.sum()),
                mean_remaining=float(remaining[own].mean()),
                **means,
            )
        )
    return found
