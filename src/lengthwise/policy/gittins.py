"""The Gittins index of an answer whose length is known as a law.

The index of a job that has reached some age is the best rate of completions that it can offer,

    max over Δ of  P(X - a ≤ Δ | X > a) / E[min(X - a, Δ) | X > a].

Serving the highest index first minimises the mean response time in an M/G/1 queue where only the
law of each job is known (Gittins 1979; Aalto, Ayesta and Righter, Queueing Systems 63, 2009).
"""

from __future__ import annotations

import math

from lengthwise.compiled import compiled
from lengthwise.policy.length_law import LOGS, SURVIVAL, cumulative_hazard, is_certain, tail_mean


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
