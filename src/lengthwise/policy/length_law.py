"""What is known of an answer's length, as a law: three predicted quantiles and the mean.

The simplest law that has these quantiles: between two of them an answer is as likely to end at one
token as at the next, that is, the hazard is constant. Beyond the 90 % quantile it is such that the
law has the predicted mean, but not above that of the stretch before: an answer that outlived its
prediction is no surer to end soon.

The Gittins index of a job whose law is known and that has reached some age is the best rate of
completions that it can offer,

    max over Δ of  P(X - a ≤ Δ | X > a) / E[min(X - a, Δ) | X > a].

Serving the highest index first minimises the mean response time in an M/G/1 queue where only the
law of each job is known (Gittins 1979; Aalto, Ayesta and Righter, Queueing Systems 63, 2009).
"""

from __future__ import annotations

import math
from typing import Final

from lengthwise.compiled import compiled

SURVIVAL: Final = (1.0, 0.9, 0.5, 0.1)  #: at 0 and at the three quantiles
LOGS: Final = (math.log(1.0 / 0.9), math.log(0.9 / 0.5), math.log(0.5 / 0.1))  #: its falls


@compiled
def is_certain(low: float, median: float, high: float) -> bool:
    """Whether the quantiles say nothing of doubt: they coincide, or are out of order."""
    return not (0.0 < low <= median <= high and high > low * 1.001)


@compiled
def tail_mean(expected: float, low: float, median: float, high: float) -> float:
    """Mean of what comes beyond the 90 % quantile, in tokens.

    Args:
        expected: predicted mean of the total length, in output tokens.
        low: predicted 10 % quantile.
        median: predicted 50 % quantile.
        high: predicted 90 % quantile.
    """
    knots = (0.0, low, median, high)
    body = 0.0  # of the mean, up to the 90 % quantile: the integral of the survival
    for k in range(3):
        body += (knots[k + 1] - knots[k]) * (SURVIVAL[k] - SURVIVAL[k + 1]) / LOGS[k]
    return max((expected - body) / SURVIVAL[3], (high - median) / LOGS[2], 1.0)


@compiled
def cumulative_hazard(
    expected: float, low: float, median: float, high: float, length: float
) -> float:
    """-log P(X > length): the survival from one length to another is exp of the difference.

    Args:
        expected: predicted mean of the total length, in output tokens.
        low: predicted 10 % quantile.
        median: predicted 50 % quantile.
        high: predicted 90 % quantile.
        length: output tokens, at least 0.
    """
    knots = (0.0, low, median, high)
    hazard = 0.0
    for k in range(3):
        if length < knots[k + 1]:
            return hazard + LOGS[k] * (length - knots[k]) / (knots[k + 1] - knots[k])
        hazard += LOGS[k]
    return hazard + (length - high) / tail_mean(expected, low, median, high)


@compiled
def inverse_gittins_index(
    prefill: float, expected: float, low: float, median: float, high: float, age: float
) -> float:
    """The least time per completion that an answer of some age offers: the lower, the sooner.

    Where the hazard is constant both the probability and the expectation are affine in the
    survival, so that their ratio is monotone: the best Δ ends at a quantile or never, and to look
    at these few is exact.

    Args:
        prefill: work that comes before the next token, in output tokens.
        expected: predicted mean of the total length, in output tokens.
        low: predicted 10 % quantile.
        median: predicted 50 % quantile.
        high: predicted 90 % quantile.
        age: output tokens so far.

    Returns:
        Tokens, at least 1. Without doubt, what remains.
    """
    if is_certain(low, median, high):
        return max(prefill + expected - age, 1.0)
    tail = tail_mean(expected, low, median, high)
    if age >= high:
        return prefill + tail
    alive = math.exp(-cumulative_hazard(expected, low, median, high, age))
    # Both are those of all answers, and not only of those that reach this age.
    time = prefill * alive
    best = math.inf
    knots = (0.0, low, median, high)
    for k in range(3):
        if age >= knots[k + 1]:
            continue
        at_start = min(SURVIVAL[k], alive)
        time += (knots[k + 1] - knots[k]) * (at_start - SURVIVAL[k + 1]) / LOGS[k]
        if alive > SURVIVAL[k + 1]:
            best = min(best, time / (alive - SURVIVAL[k + 1]))
    return max(min(best, (time + SURVIVAL[3] * tail) / alive), 1.0)
