"""Policies that use doubt: the law of a prediction, its Gittins index and its tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lengthwise.policy.length_law import (
    cumulative_hazard,
    expected_tail,
    inverse_gittins_index,
    tail_mean,
)

Law = tuple[float, float, float, float]  # expected, low, median, high

EXPONENTIAL: Law = (100.0, -100 * math.log(0.9), 100 * math.log(2), 100 * math.log(10))
SURE: Law = (100.0, 100.0, 100.0, 100.0)


@st.composite
def laws(draw: st.DrawFn) -> Law:
    low = draw(st.floats(1.0, 500.0))
    median = low * draw(st.floats(1.01, 5.0))
    high = median * draw(st.floats(1.01, 10.0))
    return median * draw(st.floats(0.5, 3.0)), low, median, high


def log_normal(sigma: float) -> Law:
    law = stats.lognorm(s=sigma, scale=100.0)
    low, median, high = law.ppf([0.1, 0.5, 0.9])
    return float(law.mean()), float(low), float(median), float(high)


def survival(law: Law, length: float) -> float:
    return math.exp(-cumulative_hazard(*law, length))


@given(laws())
@settings(deadline=None, max_examples=50)
def test_a_law_has_the_predicted_quantiles_and_mean(law: Law) -> None:
    expected, low, median, high = law
    for quantile, share in ((low, 0.9), (median, 0.5), (high, 0.1)):
        assert survival(law, quantile) == pytest.approx(share)
    body = integrate.quad(lambda x: survival(law, x), 0, high, points=[low, median])[0]
    mean = body + 0.1 * tail_mean(*law)
    assert mean == pytest.approx(expected) or mean > expected, "no tail shorter than before"
    if tail_mean(*law) > max((high - median) / math.log(5.0), 1.0) * 1.001:
        assert mean == pytest.approx(expected)


@given(laws(), st.floats(0.0, 2.0), st.sampled_from([0.0, 20.0, 400.0]))
@settings(deadline=None, max_examples=100)
def test_the_index_is_the_best_of_all_ends(law: Law, age: float, prefill: float) -> None:
    """Brute force over Δ, on a fine grid that has the quantiles in it."""
    age = math.floor(age * law[3])
    ends = age + np.geomspace(1e-3, 100.0 * (law[3] + law[0]), 3000)
    ends = np.unique([*ends, *(quantile for quantile in law[1:] if quantile > age)])
    alive = np.array([survival(law, end) for end in ends]) / survival(law, age)
    steps = np.diff(np.concatenate([[age], ends]))
    before = np.concatenate([[1.0], alive[:-1]])
    # In a stretch of constant hazard the survival is log-linear, and its mean logarithmic.
    logs = [np.log(np.maximum(survivors, 1e-300)) for survivors in (before, alive)]
    falls = np.maximum(logs[0] - logs[1], 1e-12)
    times = prefill + np.cumsum(steps * (before - alive) / falls)
    best = float((times / (1.0 - alive)).min())
    assert inverse_gittins_index(prefill, *law, age) == pytest.approx(max(best, 1.0), rel=1e-3)


@pytest.mark.parametrize("age", [0.0, 1.0, 30.0, 100.0, 1000.0])
def test_the_index_of_an_exponential_law_never_changes(age: float) -> None:
    assert inverse_gittins_index(0.0, *EXPONENTIAL, age) == pytest.approx(100.0)


def test_the_index_of_a_sure_length_is_what_remains() -> None:
    assert [inverse_gittins_index(0.0, *SURE, age) for age in (0, 40, 100, 400)] == [100, 60, 1, 1]
    assert inverse_gittins_index(7.0, *SURE, 40.0) == 67.0


def test_under_a_heavy_tail_who_outlives_the_prediction_goes_back() -> None:
    ages = (0.0, 300.0, 500.0, 2000.0)
    index = [inverse_gittins_index(0.0, *log_normal(1.5), age) for age in ages]
    assert index == sorted(index)
    assert index[-1] > 4 * index[0]


def test_of_two_with_one_mean_the_less_sure_goes_first() -> None:
    """As it may end early, which costs little to find out."""
    sure = inverse_gittins_index(0.0, *SURE, 0.0)
    doubtful = inverse_gittins_index(0.0, 100.0, 5.0, 30.0, 250.0, 0.0)
    assert doubtful < sure


@given(laws(), st.floats(0.0, 1e6))
@settings(deadline=None)
def test_the_index_is_finite_at_any_age(law: Law, age: float) -> None:
    index = inverse_gittins_index(0.0, *law, age)
    assert math.isfinite(index)
    assert index >= 1.0


@pytest.mark.parametrize(
    "law",
    [
        (100.0, 0.0, 50.0, 200.0),
        (100.0, 120.0, 50.0, 200.0),
        (100.0, 50.0, 50.0, 50.0),
        (100.0, math.nan, 50.0, 200.0),
    ],
)
def test_quantiles_that_make_no_sense_are_no_doubt(law: Law) -> None:
    assert inverse_gittins_index(0.0, *law, 20.0) == 80.0


@pytest.mark.parametrize("quantiles", [(50.0, 50.0, 200.0), (50.0, 200.0, 200.0)])
def test_quantiles_may_coincide(quantiles: tuple[float, float, float]) -> None:
    for age in (0.0, 49.0, 50.0, 120.0, 200.0, 300.0):
        assert math.isfinite(inverse_gittins_index(0.0, 110.0, *quantiles, age))


@pytest.mark.parametrize("sigma", [0.2, 0.8, 1.5])
def test_the_tail_is_the_mean_of_the_longest_tenth(sigma: float) -> None:
    law = stats.lognorm(s=sigma, scale=100.0)
    expected, low, _, high = log_normal(sigma)
    truth = law.expect(lambda x: x, lb=high, ub=np.inf) / 0.1
    assert expected_tail(expected, low, high) == pytest.approx(truth, rel=1e-3)
    assert expected_tail(100.0, 100.0, 100.0) == 100.0
