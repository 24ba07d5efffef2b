"""When requests arrive, and made-up traffic.

Arrival times are seeded, in seconds from the start of a round: a non-decreasing float64 array of
shape (count,). The closed loop (N clients, each sending its next request when the last one is
answered) has none of its own: it lives in the client that replays the requests.

Made-up traffic has log-normal lengths and Gamma arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.trace import Trace
from lengthwise.workload.trace_rows import LONGEST

Times = NDArray[np.float64]

# Of made-up lengths: above, the mean hangs on requests so long and rare that no feasible sample has
# one.
_LARGEST_SIGMA: Final = 3.0
_LEAST_CV: Final = 1e-6
_LARGEST_CV: Final = 1e6


def burst(count: int) -> Times:
    """All `count` requests at second 0."""
    return np.zeros(_checked_count(count))


def poisson(count: int, rate: float, seed: int) -> Times:
    """Poisson arrivals: independent exponential gaps.

    Args:
        count: number of requests.
        rate: mean arrivals per second.
        seed: same seed, same times.
    """
    return gamma(count, rate, cv=1.0, seed=seed)


def gamma(count: int, rate: float, cv: float, seed: int) -> Times:
    """Independent Gamma gaps with mean 1/rate and coefficient of variation `cv`.

    Shape 1/cv² and scale cv²/rate, as in the evaluation of learning-to-rank scheduling
    (Fu et al. 2024, arXiv 2408.15792): cv 1 is Poisson, above 1 burstier, below 1 more even, and 0
    evenly spaced.

    Args:
        count: number of requests.
        rate: mean arrivals per second.
        cv: standard deviation of the gaps over their mean, no unit.
        seed: same seed, same times.
    """
    _check_positive("the arrival rate", rate)
    # Beyond, its square or the inverse of that is no number; nobody means such gaps.
    if cv and not _LEAST_CV <= cv <= _LARGEST_CV:
        raise InputError(
            "the coefficient of variation of the gaps must be 0 or from "
            f"{_LEAST_CV:g} to {_LARGEST_CV:g}, got {cv}"
        )
    if cv == 0:
        return np.arange(1, _checked_count(count) + 1) / rate
    random = np.random.default_rng(seed)
    gaps = random.gamma(shape=1 / cv**2, scale=cv**2 / rate, size=_checked_count(count))
    return np.cumsum(gaps)


def replay(times_s: Sequence[float] | Times, count: int, speed: float = 1.0) -> Times:
    """The first `count` arrivals of a recorded trace, from second 0, played `speed` times faster.

    Args:
        times_s: the trace's arrival times in seconds, any origin, non-decreasing.
        count: number of requests; the trace must have at least as many.
        speed: 2 halves every gap.
    """
    _check_positive("the speed of a trace", speed)
    trace = np.asarray(times_s, dtype=np.float64)
    if trace.ndim != 1 or not np.all(np.isfinite(trace)) or np.any(np.diff(trace) < 0):
        raise InputError("the arrival times of a trace must be finite numbers that never decrease")
    if len(trace) < _checked_count(count):
        raise InputError(
            f"the trace has {len(trace):,} arrivals, {count:,} requests were asked for: "
            "ask for fewer requests or give a longer trace"
        )
    first = trace[:count]
    return (first - first[0]) / speed if count else first


def _checked_count(count: int) -> int:
    if count < 0:
        raise InputError(f"the number of requests must not be negative, got {count}")
    return count


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a number above 0, got {value}")


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
        arrival_s=burst(count) if rate == math.inf else gamma(count, rate, cv, seed),
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
