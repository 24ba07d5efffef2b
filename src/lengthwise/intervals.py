"""How sure a figure is: its interval by draws with replacement, or by Student's t.

Draws with replacement are the bootstrap of Efron and Tibshirani (An Introduction to the Bootstrap,
1993). Two figures of the same draws may be compared draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DRAWS_OF_GROUPS: Final = 1_000


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """37.0 (35.1–39.2), each number in that form."""
        return f"{self.value:{form}} ({self.low:{form}}–{self.high:{form}})"


def draws(rows: int, times: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """As many rows as there are, with replacement, so many times; each of shape (rows,)."""
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield random.integers(rows, size=rows)


def draws_of_groups(
    groups: NDArray[np.int64], times: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of as many groups as there are, with replacement, so many times.

    Rows of one group, such as the answers of a conversation, are alike: drawn one by one they would
    promise more than they tell. The same as `draws` where every row is a group.

    Args:
        groups: shape (rows,), which group each row belongs to.
        times: how often.
        seed: of the draws.
    """
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if sizes.size == groups.size:
        yield from draws(groups.size, times, seed)
        return
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(sizes)[:-1])
    for drawn in draws(sizes.size, times, seed):
        yield np.concatenate([members[group] for group in drawn])


def middle_95(drawn: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Between which ends the middle 95 % of the draws' figures lie."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean; 0 for fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def t_margin(values: NDArray[np.float64], confidence: float = 0.95) -> float:
    """How far the interval of a mean reaches to either side by Student's t; at least two values."""
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * standard_error(values)


def t_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, margin = float(values.mean()), t_margin(values)
    return mean - margin, mean + margin


class GroupDraws:
    """Draws of whole groups of rows, such as the moments of a request, which are much alike.

    They are the same for every figure, so ratios are paired.
    """

    def __init__(self, group: NDArray[np.int64], seed: int) -> None:
        """Make the draws.

        Args:
            group: shape (rows,), which group each row belongs to.
            seed: of the draws.
        """
        _, self._group = np.unique(group, return_inverse=True)
        self._rows = np.bincount(self._group).astype(np.float64)
        count = self._rows.size
        random = np.random.default_rng(seed)
        self._draws = random.multinomial(count, np.full(count, 1 / count), _DRAWS_OF_GROUPS).astype(
            np.float64
        )

    def mean(self, values: NDArray[np.float64]) -> Estimate:
        """The mean of values of shape (rows,)."""
        sums = self._sums(values)
        drawn = (self._draws @ sums) / (self._draws @ self._rows)
        return Estimate(float(sums.sum() / self._rows.sum()), *middle_95(drawn))

    def ratio(self, above: NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
        """One mean over another: of errors, how many times smaller the ones below are."""
        first, second = self._sums(above), self._sums(below)
        drawn = (self._draws @ first) / (self._draws @ second)
        return Estimate(float(first.sum() / second.sum()), *middle_95(drawn))

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(self._group, weights=values), dtype=np.float64)
