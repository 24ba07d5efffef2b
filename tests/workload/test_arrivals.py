"""Arrival processes: the right mean, the right variation, the same times for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.workload import arrivals


def test_burst_is_all_at_once() -> None:
    assert arrivals.burst(5).tolist() == [0.0] * 5


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_asked_mean_and_variation(cv: float) -> None:
    gaps = np.diff(arrivals.gamma(200_000, rate=4.0, cv=cv, seed=1), prepend=0.0)
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.03)


def test_poisson_counts_in_windows_have_variance_equal_to_their_mean() -> None:
    times = arrivals.poisson(200_000, rate=10.0, seed=2)
    counts = np.histogram(times, bins=np.arange(0, times[-1], 1.0))[0]
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.05)


@given(
    count=st.integers(0, 50),
    rate=st.floats(1e-3, 1e3),
    cv=st.floats(0.05, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_times_never_decrease_and_repeat_with_the_seed(
    count: int, rate: float, cv: float, seed: int
) -> None:
    times = arrivals.gamma(count, rate, cv, seed)
    assert times.shape == (count,)
    assert np.all(np.diff(times, prepend=0.0) >= 0)
    assert np.array_equal(times, arrivals.gamma(count, rate, cv, seed))


def test_gaps_without_variation_are_even() -> None:
    assert arrivals.gamma(3, rate=4.0, cv=0.0, seed=1).tolist() == [0.25, 0.5, 0.75]


def test_replay_starts_at_zero_and_scales() -> None:
    assert arrivals.replay([10.0, 10.5, 14.0, 99.0], count=3, speed=2.0).tolist() == [0, 0.25, 2.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: arrivals.poisson(3, rate=0.0, seed=0), "rate must be a number above 0"),
        (lambda: arrivals.poisson(3, rate=float("nan"), seed=0), "above 0"),
        (lambda: arrivals.gamma(3, rate=1.0, cv=-1.0, seed=0), "variation"),
        (lambda: arrivals.gamma(3, rate=1.0, cv=float("nan"), seed=0), "variation"),
        (lambda: arrivals.gamma(3, rate=1.0, cv=1e200, seed=0), "variation"),
        (lambda: arrivals.gamma(3, rate=1.0, cv=1e-200, seed=0), "variation"),
        (lambda: arrivals.burst(-1), "must not be negative"),
        (lambda: arrivals.replay([0.0, 1.0], count=3), "has 2 arrivals, 3 requests"),
        (lambda: arrivals.replay([1.0, 0.5], count=2), "never decrease"),
        (lambda: arrivals.replay([0.0, 1.0], count=2, speed=0.0), "speed"),
    ],
)
def test_refusals_say_what_is_wrong(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
