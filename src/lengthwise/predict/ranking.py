"""How well an order agrees with the truth: Kendall's tau-b."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

_RESAMPLES: Final = 1_000
_LEAST_RESAMPLES: Final = 100
_RESAMPLED_ROWS: Final = 4_000_000  #: in all, to bound the time on large tables


def kendall_tau(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Tau-b, which counts ties against neither side (Kendall, 1945).

    Args:
        truth: shape (n,).
        scores: shape (n,).

    Returns:
        −1 to 1, or None where it is undefined: fewer than two rows, or one side all equal.
    """
    from scipy.stats import kendalltau

    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.size < 2 or np.all(truth == truth[0]) or np.all(scores == scores[0]):
        return None
    return float(kendalltau(truth, scores).statistic)


def tau_interval(
    truth: ArrayLike, scores: ArrayLike, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float] | None:
    """A bootstrap percentile interval of tau-b: rows are drawn with replacement.

    Args:
        truth: shape (n,).
        scores: shape (n,).
        seed: of the draws.
        confidence: share of the resampled taus inside.

    Returns:
        the two ends, or None where tau is undefined.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if kendall_tau(truth, scores) is None:
        return None
    random = np.random.default_rng(seed)
    resamples = int(np.clip(_RESAMPLED_ROWS // truth.size, _LEAST_RESAMPLES, _RESAMPLES))
    taus = []
    for _ in range(resamples):
        drawn = random.integers(truth.size, size=truth.size)
        tau = kendall_tau(truth[drawn], scores[drawn])
        if tau is not None:
            taus.append(tau)
    low, high = np.quantile(taus, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
