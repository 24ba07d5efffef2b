"""From a score, which only orders, to tokens: the mean length and its 10/50/90 % quantiles.

Isotonic regression (Ayer et al., 1955): the best fit among functions that never fall. The quantiles
are those of held-out answers in bins of neighbouring scores, made monotone in the same way. They
are conformal (Vovk, Gammerman and Shafer, 2005): of n answers, a new one falls below the k-th
smallest with probability k / (n + 1), so that is the rank that is taken, not k / n.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.losses import QUANTILES

#: Columns of a calibration table.
SCORE, EXPECTED, LOW, MEDIAN, HIGH = range(5)

_BINS: Final = 100  #: at most so many rows of a table
_BIN_SIZE: Final = 50  #: answers that a bin has at least, where there are so many


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to `values` in weighted least squares.

    Pool adjacent violators, in linear time. SciPy has it too (`isotonic_regression`), but adds up
    in another order, and the last digit of every predictor would be another.

    Args:
        values: shape (n,).
        weights: shape (n,), positive.

    Returns:
        shape (n,).
    """
    return _pool_adjacent_violators(
        np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    )


@compiled
def _pool_adjacent_violators(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    count = values.size
    means = np.empty(count)
    masses = np.empty(count)
    sizes = np.empty(count, dtype=np.int64)
    pools = 0
    for index in range(count):
        means[pools], masses[pools], sizes[pools] = values[index], weights[index], 1
        pools += 1
        while pools > 1 and means[pools - 2] > means[pools - 1]:
            mass = masses[pools - 2] + masses[pools - 1]
            means[pools - 2] = (
                means[pools - 2] * masses[pools - 2] + means[pools - 1] * masses[pools - 1]
            ) / mass
            masses[pools - 2] = mass
            sizes[pools - 2] += sizes[pools - 1]
            pools -= 1
    fitted = np.empty(count)
    at = 0
    for pool in range(pools):
        fitted[at : at + sizes[pool]] = means[pool]
        at += sizes[pool]
    return fitted


def fit_calibration(
    scores: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Learn the table from held-out answers.

    Args:
        scores: shape (n,), n ≥ 1, of prompts that the model was not trained on.
        lengths: shape (n,), tokens of their answers.

    Returns:
        shape (bins, 5), columns SCORE (ascending), EXPECTED, LOW, MEDIAN, HIGH, each
        non-decreasing and at least 1, and LOW ≤ MEDIAN ≤ HIGH.
    """
    order = np.argsort(scores, kind="stable")
    bins = max(1, min(_BINS, scores.size // _BIN_SIZE))
    parts = np.split(order, _between_ties(scores[order], bins))
    table = np.empty((len(parts), 5))
    for index, part in enumerate(parts):
        table[index, SCORE] = scores[part].mean()
        table[index, EXPECTED] = lengths[part].mean()
        table[index, LOW : HIGH + 1] = _conformal(lengths[part])
    sizes = np.array([part.size for part in parts], dtype=np.float64)
    for column in range(EXPECTED, HIGH + 1):
        # An answer has at least the token that ends it.
        table[:, column] = np.maximum(1.0, isotonic(table[:, column], sizes))
    return table


def _between_ties(scores: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Where to cut sorted scores into about equal bins, so that equal ones stay together."""
    wanted = np.arange(1, bins) * scores.size // bins
    cuts = np.unique(np.searchsorted(scores, scores[wanted]))
    return cuts[cuts > 0]


def _conformal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 10, 50 and 90 % quantiles at rank q·(n + 1), shape (3,)."""
    return np.asarray(np.quantile(values, QUANTILES, method="weibull"), dtype=np.float64)


def fit_factors(
    logarithms: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a model's own quantiles must be multiplied with, to be true of held-out answers.

    Conformalised quantile regression (Romano, Patterson and Candès, arXiv 1905.03222), for each
    quantile by itself and on the logarithm.

    Args:
        logarithms: shape (n, 3), of the model's 10, 50 and 90 % quantiles.
        lengths: shape (n,), tokens of the answers.

    Returns:
        shape (3,).
    """
    missed = np.log(np.maximum(1.0, lengths))[:, np.newaxis] - logarithms
    return np.exp([_conformal(missed[:, index])[index] for index in range(len(QUANTILES))])


def quantile_lengths(
    logarithms: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Low, median and high lengths in tokens, in order and at least 1, shape (n, 3)."""
    # Beyond e²⁰ tokens no answer is; the exponential must not overflow.
    lengths = np.exp(np.minimum(logarithms, 20.0)) * factors
    ordered: NDArray[np.float64] = np.maximum(1.0, np.sort(lengths, axis=1))
    return ordered


@compiled
def calibrate(score: float, table: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Expected, low, median and high length at a score, by linear interpolation.

    Beyond the first and the last row of the table they stay what they are there.
    """
    left, right = 0, table.shape[0] - 1
    while right - left > 1:
        middle = (left + right) // 2
        if table[middle, SCORE] <= score:
            left = middle
        else:
            right = middle
    width = table[right, SCORE] - table[left, SCORE]
    part = (score - table[left, SCORE]) / width if width > 0 else 0.0
    part = min(max(part, 0.0), 1.0)
    return (
        table[left, EXPECTED] + part * (table[right, EXPECTED] - table[left, EXPECTED]),
        table[left, LOW] + part * (table[right, LOW] - table[left, LOW]),
        table[left, MEDIAN] + part * (table[right, MEDIAN] - table[left, MEDIAN]),
        table[left, HIGH] + part * (table[right, HIGH] - table[left, HIGH]),
    )


def score_at(expected: float, table: NDArray[np.float64]) -> float:
    """The score of prompts that are expected to take so many tokens: the other way round.

    Scores of the first bin all mean its length; a shorter one goes before them, at 0 tokens by as
    much as the table is wide.
    """
    scores = table[:, SCORE]
    lowest = 2 * scores[0] - scores[-1]
    lengths = np.concatenate(([0.0], table[:, EXPECTED]))
    return float(np.interp(expected, lengths, np.concatenate(([lowest], scores))))


@compiled
def calibrate_many(scores: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """`calibrate` of each score: shape (n, 4), columns expected, low, median, high."""
    lengths = np.empty((scores.size, 4))
    for index in range(scores.size):
        expected, low, median, high = calibrate(scores[index], table)
        lengths[index, 0], lengths[index, 1] = expected, low
        lengths[index, 2], lengths[index, 3] = median, high
    return lengths
