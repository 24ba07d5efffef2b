"""When requests arrive: seeded arrival times in seconds from the start of a round.

Every function returns a non-decreasing float64 array of shape (count,). The closed loop (N clients,
each sending its next request when the last one is answered) has no arrival times of its own: it
lives in the client that replays the requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError

Times = NDArray[np.float64]


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
    (Fu et al. 2024, arXiv 2408.15792): cv 1 is Poisson, above 1 burstier, below 1 more even.

    Args:
        count: number of requests.
        rate: mean arrivals per second.
        cv: standard deviation of the gaps over their mean, no unit.
        seed: same seed, same times.
    """
    _check_positive("the arrival rate", rate)
    _check_positive("the coefficient of variation of the gaps", cv)
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
