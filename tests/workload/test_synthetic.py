"""Synthetic traffic: the means and the spread that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace


def make(count: int = 100, rate: float = 2.0, seed: int = 0, **options: float) -> Trace:
    lengths = {"mean_prompt": 100.0, "mean_output": 200.0, "sigma": 1.0}
    return synthetic_trace(count, rate, seed=seed, **{**lengths, **options})


@pytest.mark.parametrize("mean", [1.5, 20.0, 300.0])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_means_and_spread_are_kept(mean: float, sigma: float) -> None:
    trace = make(400_000, mean_prompt=mean, mean_output=2 * mean, sigma=sigma)
    assert trace.prompt_tokens.mean() == pytest.approx(mean, rel=0.02)
    assert trace.output_tokens.mean() == pytest.approx(2 * mean, rel=0.02)
    if mean == 300:
        assert np.log(trace.prompt_tokens).std() == pytest.approx(sigma, abs=0.02)


def test_lengths_follow_neither_each_other_nor_the_gaps() -> None:
    trace = make(100_000)
    gaps = np.diff(trace.arrival_s, prepend=0.0)
    ranks = [np.argsort(np.argsort(x)) for x in (gaps, trace.prompt_tokens, trace.output_tokens)]
    assert np.abs(np.corrcoef(ranks) - np.eye(3)).max() < 0.02


@given(
    count=st.integers(1, 50),
    rate=st.floats(0.1, 100) | st.just(math.inf),
    mean=st.floats(1, 1000),
    sigma=st.floats(0, 2),
    cv=st.floats(0.2, 3),
    seed=st.integers(0, 2**32),
)
def test_the_same_seed_gives_the_same_requests_at_any_rate(
    count: int, rate: float, mean: float, sigma: float, cv: float, seed: int
) -> None:
    options = {"mean_prompt": mean, "mean_output": mean, "sigma": sigma, "cv": cv, "seed": seed}
    trace, twice = (synthetic_trace(count, r, **options) for r in (rate, 2 * rate))  # type: ignore[arg-type]
    assert len(trace) == count
    assert trace.layout == "synthetic"
    assert np.array_equal(trace.prompt_tokens, twice.prompt_tokens)
    assert np.array_equal(trace.output_tokens, twice.output_tokens)
    assert np.allclose(trace.arrival_s, 2 * twice.arrival_s, rtol=1e-12)
    if rate == math.inf:
        assert not trace.arrival_s.any()


def test_arrivals_have_the_rate_and_variation_that_were_asked_for() -> None:
    trace = make(200_000, rate=4.0, cv=2.0)
    gaps = np.diff(trace.arrival_s)
    assert trace.rate == pytest.approx(4.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "number of requests"),
        ({"rate": 0.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"cv": -1.0}, "variation"),
        ({"mean_prompt": 0.5}, "mean length must be from 1"),
        ({"mean_output": math.nan}, "mean length"),
        ({"sigma": -1.0}, "sigma must be from 0 to 3"),
        ({"sigma": math.nan}, "sigma"),
        ({"sigma": 3.1}, "sigma"),
        ({"mean_prompt": 1e8}, "lower one of them"),
    ],
)
def test_refusals_say_what_is_wrong(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(**options)  # type: ignore[arg-type]
