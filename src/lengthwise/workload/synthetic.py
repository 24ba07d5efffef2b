"""Made-up traffic: log-normal lengths, Gamma arrivals."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload import arrivals
from lengthwise.workload.cells import LONGEST
from lengthwise.workload.trace import Trace

# Above, the mean hangs on requests so long and rare that no feasible sample has one.
_LARGEST_SIGMA: Final = 3.0


def synthetic_trace(
    count: int,
    rate: float,
    *,
    mean_prompt: float,
    mean_output: float,
    sigma: float,
    cv: float = 1.0,
    seed: int,
) -> Trace:
    """Requests with independent log-normal lengths.

    The same seed gives the same lengths at every rate, and arrivals that differ in scale alone.

    Args:
        count: number of requests, at least 1.
        rate: mean arrivals per second; inf for all at once.
        mean_prompt: expected tokens of a prompt, at least 1.
        mean_output: expected tokens of an answer, at least 1.
        sigma: standard deviation of the logarithm of both lengths, from 0 (constant) to 3.
        cv: coefficient of variation of the gaps between arrivals; 1 is Poisson.
        seed: same seed, same trace.

    Raises:
        InputError: an argument is out of range.
    """
    if count < 1:
        raise InputError(f"the number of requests must be at least 1, got {count}")
    if not 0 <= sigma <= _LARGEST_SIGMA:
        raise InputError(f"sigma must be from 0 to {_LARGEST_SIGMA:g}, got {sigma}")
    # A stream of their own: lengths must not follow the gaps.
    random = np.random.default_rng([seed, 1])
    return Trace(
        name="synthetic",
        arrival_s=arrivals.burst(count)
        if rate == math.inf
        else arrivals.gamma(count, rate, cv, seed),
        prompt_tokens=_lengths(random, count, mean_prompt, sigma),
        output_tokens=_lengths(random, count, mean_output, sigma),
        rejected=[],
        layout="synthetic",
    )


def _lengths(
    random: np.random.Generator, count: int, mean: float, sigma: float
) -> NDArray[np.int64]:
    """One token and a log-normal number of more, rounded so that the expectation is `mean`."""
    if not 1 <= mean <= LONGEST:
        raise InputError(f"a mean length must be from 1 to {LONGEST:,} tokens, got {mean}")
    more = (mean - 1) * random.lognormal(-(sigma**2) / 2, sigma, count)
    # E⌊x + U⌋ = x for U uniform on [0, 1), which ordinary rounding does not give near 0.
    lengths = 1 + np.floor(more + random.random(count))
    if lengths.max() > LONGEST:
        raise InputError(
            f"a mean of {mean:g} tokens with sigma {sigma:g} gives lengths above {LONGEST:,}: "
            "lower one of them"
        )
    return lengths.astype(np.int64)
