"""Expected remaining length of an answer that has already reached some age, and of its tail.

Both take the predicted quantiles for those of a log-normal law. It is the one rule by which
predictions age: from the prompt's prediction of the whole length, and from a later one of what was
still to come, counted from the token at which that was made.

`policy.length_law` reads the same quantiles as another law, and neither can stand in for the other.
Here the mean of what remains is wanted, for every request of every step, and it falls and rises
smoothly with the age; there a survival whose best moments to stop are the quantiles themselves.
"""

from __future__ import annotations

import math
from typing import Final

from lengthwise.compiled import compiled

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
