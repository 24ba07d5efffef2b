"""What is known of an answer's length: its predicted law, and what stands in where there is none.

Of the law three quantiles and the mean are predicted. Two laws are read from them, and neither can
stand in for the other. Where the mean of what remains is wanted, for every request of every step,
it is a log-normal one, with which that mean falls and rises smoothly with the age. It is the one
rule by which predictions age: from the prompt's prediction of the whole length, and from a later
one of what was still to come, counted from the token at which that was made.

Where the chance to end is wanted, it is the simplest law that has these quantiles: between two of
them an answer is as likely to end at one token as at the next, that is, the hazard is constant.
Beyond the 90 % quantile it is such that the law has the predicted mean, but not above that of the
stretch before: an answer that outlived its prediction is no surer to end soon.

The Gittins index of a job whose law is known and that has reached some age is the best rate of
completions that it can offer,

    max over Δ of  P(X - a ≤ Δ | X > a) / E[min(X - a, Δ) | X > a].

Serving the highest index first minimises the mean response time in an M/G/1 queue where only the
law of each job is known (Gittins 1979; Aalto, Ayesta and Righter, Queueing Systems 63, 2009).

A request is predicted once, soon after it arrives, at most `PER_STEP` in one step, and fewer where
prompts are long, so that a burst never holds a step up. The bound is on what is read and not on
time, so that the same requests give the same schedule. Until then, and for good where nothing can
be predicted, it ranks as the running median of recent predictions; when nothing was ever predicted
all requests look alike, which is exactly fcfs.
"""

from __future__ import annotations

import math
from typing import Final

from lengthwise.compiled import compiled
from lengthwise.request import FREE, RequestTable

SURVIVAL: Final = (1.0, 0.9, 0.5, 0.1)  #: at 0 and at the three quantiles
LOGS: Final = (math.log(1.0 / 0.9), math.log(0.9 / 0.5), math.log(0.5 / 0.1))  #: its falls

_NORMAL_90: Final = 1.2815515655446004  # the 90 % quantile of the standard normal law
_NORMAL_SPAN: Final = 2.0 * _NORMAL_90  # between its 10 % and 90 % quantiles


@compiled
def _normal_tail(z: float) -> float:
    """P(Z > z) for a standard normal Z."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


@compiled
def expected_remaining(
    expected: float, low: float, median: float, high: float, age: float
) -> float:
    """Output tokens still to come, given that `age` tokens did not end the answer.

    `expected - age` would be right for a sure prediction only: an answer that outlives its estimate
    would look nearly done for ever. With the predicted quantiles taken as those of a log-normal
    law, this is its mean residual life E[L - a | L > a], scaled to equal `expected` at age 0. It
    first falls with age and rises again once the prediction has been proved too low.

    Args:
        expected: predicted mean of the total length, in output tokens.
        low: predicted 10 % quantile.
        median: predicted 50 % quantile.
        high: predicted 90 % quantile.
        age: output tokens so far.

    Returns:
        Tokens, at least 1.
    """
    if age <= 0.0:
        return max(expected, 1.0)
    if not (low > 0.0 and high > low * 1.001 and median > 0.0):
        return max(expected - age, 1.0)
    sigma = math.log(high / low) / _NORMAL_SPAN
    z = (math.log(age) - math.log(median)) / sigma
    if z > 6.0:
        # Both tails underflow soon; the ratio tends to age · sigma / z.
        return max(age * sigma / z, 1.0)
    mean = median * math.exp(0.5 * sigma * sigma)
    residual = mean * _normal_tail(z - sigma) / _normal_tail(z) - age
    return max(residual * expected / mean, 1.0)


@compiled
def expected_tail(expected: float, low: float, high: float) -> float:
    """The mean length of the longest tenth: conditional value at risk at the level 0.9.

    Args:
        expected: predicted mean of the total length, in output tokens.
        low: predicted 10 % quantile.
        high: predicted 90 % quantile.

    Returns:
        Tokens, at least `expected`.
    """
    if not (low > 0.0 and high > low):
        return expected
    sigma = math.log(high / low) / _NORMAL_SPAN
    return expected * _normal_tail(_NORMAL_90 - sigma) / 0.1


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


PER_STEP: Final = 128  #: requests that are predicted in a step at most
READ: Final = 1024  #: prompt tokens that count of one request: predictors read no more of it
READ_PER_STEP: Final = 16 * READ  #: once so many were read in a step, the others wait: about 2 ms
RECENT: Final = 512  #: predictions that the median is of
MEDIAN_EVERY: Final = 32  #: new predictions after which it is computed anew

#: Score, expected, low, median and high before anything was predicted.
UNKNOWN: Final = (0.0, 128.0, 128.0, 128.0, 128.0)


@compiled
def stand_in(
    table: RequestTable,
    count: int,
    score: float,
    expected: float,
    low: float,
    median: float,
    high: float,
) -> None:
    """Give every request in rows 0 … count-1 that has no prediction of its own this one."""
    for i in range(count):
        request = table[i]
        if request.state == FREE or request.predicted:
            continue
        request.score = score
        request.expected = expected
        request.low = low
        request.median = median
        request.high = high
        request.initial = expected
        request.predicted_age = 0
        request.remaining = expected
