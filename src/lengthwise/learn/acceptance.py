"""Whether a new predictor orders answers better than the present one, and how sure that is.

Both score the same held-out answers, the newest ones, that neither was trained on. The answers are
drawn with replacement again and again, and the difference of the two taus is taken of each draw (a
paired bootstrap: Efron and Tibshirani, 1993, chapter 16). The new one is better if that difference
is above 0 in all but the lowest 2.5 % of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.ranking import kendall_tau, tau_interval

_RESAMPLES: Final = 400
_LOWEST: Final = 0.025

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What held-out answers say of two predictors. A tau that is undefined counts as 0."""

    rows: int
    tau: float  # of the new predictor
    tau_low: float  # ends of its 95 % bootstrap interval
    tau_high: float
    present_tau: float
    difference_low: float  # what the difference is above in 97.5 % of the draws

    @property
    def is_better(self) -> bool:
        """Whether the new predictor is to be taken."""
        return self.difference_low > 0.0


def compare(
    lengths: NDArray[np.int64], new: Scores, present: Scores, seed: int = 0, tried: int = 1
) -> Comparison:
    """Compare two predictors' scores of the same answers.

    Args:
        lengths: shape (n,), whole lengths in tokens.
        new: shape (n,), the new predictor's scores.
        present: shape (n,), the present one's; all equal where there is none.
        seed: of the draws.
        tried: how many new predictors are compared on these answers to take the best one; each
            must then be better in so many times more of the draws (Bonferroni).
    """
    random = np.random.default_rng(seed)
    differences = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        rows = random.integers(lengths.size, size=lengths.size)
        differences[draw] = tau_or_0(lengths[rows], new[rows]) - tau_or_0(
            lengths[rows], present[rows]
        )
    tau, low, high = tau_with_interval(lengths, new, seed)
    return Comparison(
        rows=lengths.size,
        tau=tau,
        tau_low=low,
        tau_high=high,
        present_tau=tau_or_0(lengths, present),
        difference_low=float(np.quantile(differences, _LOWEST / tried)),
    )


def tau_or_0(lengths: NDArray[np.int64], scores: Scores) -> float:
    """Kendall's tau-b; 0 where it is undefined, as all requests then look alike."""
    return kendall_tau(lengths, scores) or 0.0


def tau_with_interval(
    lengths: NDArray[np.int64], scores: Scores, seed: int = 0
) -> tuple[float, float, float]:
    """Tau and the ends of its 95 % bootstrap interval; all 0 where it is undefined."""
    interval = tau_interval(lengths, scores, seed)
    if interval is None:
        return 0.0, 0.0, 0.0
    return tau_or_0(lengths, scores), *interval
