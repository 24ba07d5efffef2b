"""Bins and the filter over them, against a plain textbook version."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.probe.refine import (
    HIGH,
    LEAST_EPSILON,
    LOW,
    MEAN,
    MEDIAN,
    NARROWEST,
    Filter,
    bin_of,
    equal_edges,
    geometric_edges,
    longest_length,
    midpoints,
    new_filter,
    pool,
    refine,
    start,
    summarise,
    transitions,
)

widths = st.lists(st.floats(1, 300), min_size=1, max_size=12)
counts = st.integers(2, 12)


def some_edges(sizes: list[float]) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(sizes)])


def distribution(random: np.random.Generator, rows: int, bins: int) -> np.ndarray:
    return random.dirichlet(np.full(bins, 0.5), rows).astype(np.float32)


def textbook(
    posterior: list[float], chances: list[float], elapsed: int, constants: Filter
) -> list[float]:
    """Predict and update in plain Python, one token at a time."""
    edges, bins = constants.edges, len(posterior)
    for _ in range(elapsed):
        moved = [0.0] * bins
        for i in range(bins):
            leaves = 0.0 if i == 0 else posterior[i] / (edges[i + 1] - edges[i])
            moved[i] += posterior[i] - leaves
            moved[max(i - 1, 0)] += leaves
        posterior = moved
    epsilon = constants.epsilon
    products = [
        ((1 - epsilon) * posterior[i] + epsilon / bins)
        * (chances[i] / float(constants.base[i])) ** constants.temper
        for i in range(bins)
    ]
    return [product / sum(products) for product in products]


@given(widths, st.integers(0, 2**32 - 1), st.floats(0, 1.5), st.floats(1e-6, 1), st.booleans())
@settings(deadline=None)
def test_the_filter_is_the_textbook_bayes_filter(
    sizes: list[float], seed: int, temper: float, epsilon: float, corrected: bool
) -> None:
    random = np.random.default_rng(seed)
    edges = some_edges(sizes)
    bins = len(sizes)
    base = random.dirichlet(np.ones(bins)) + 1e-3 if corrected else None
    constants = new_filter(edges, temper, epsilon, base)
    posteriors = random.dirichlet(np.ones(bins), 5)
    expected = [list(map(float, row)) for row in posteriors]
    rows = np.array([3, 0, 4], dtype=np.int64)
    for _ in range(4):
        chances = distribution(random, rows.size, bins) + np.float32(1e-6)
        elapsed = random.integers(0, 20, rows.size)
        assert refine(posteriors, rows, chances, elapsed, constants) == 0
        for n, row in enumerate(rows):
            expected[row] = textbook(
                expected[row], [float(c) for c in chances[n]], int(elapsed[n]), constants
            )
    np.testing.assert_allclose(posteriors, expected, rtol=1e-6, atol=1e-12)


@given(st.integers(1, 12), st.floats(1, 200))
def test_unequal_bins_of_one_width_have_the_matrix_of_equal_bins(count: int, width: float) -> None:
    matrix = transitions(some_edges([width] * count))
    np.testing.assert_allclose(matrix, transitions(equal_edges(count * width, count)), atol=1e-9)
    # The published one: 1 − 1/w stays, 1/w moves down, nothing leaves the first bin.
    for i in range(count):
        assert matrix[i, i] == pytest.approx(1 if i == 0 else 1 - 1 / width, abs=1e-9)
        if i > 0:
            assert matrix[i, i - 1] == pytest.approx(1 / width)
    assert np.count_nonzero(matrix) <= 2 * count - 1


@given(widths)
def test_a_transition_loses_no_mass_and_only_leads_down(sizes: list[float]) -> None:
    matrix = transitions(some_edges(sizes))
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (matrix >= 0).all()
    assert not np.triu(matrix, 1).any()


def test_many_tokens_at_once_are_as_many_single_tokens() -> None:
    edges = geometric_edges(800, 15)
    constants = new_filter(edges, 1.0, 1e-6)
    whole = np.random.default_rng(0).dirichlet(np.ones(15), 1)
    step = whole.copy()
    row, flat = np.zeros(1, dtype=np.int64), np.ones((1, 15), dtype=np.float32)
    for _ in range(300):
        refine(step, row, flat, np.array([1]), constants)
    refine(whole, row, flat, np.array([300]), constants)
    # ε is mixed in at each prediction, 300 times against once.
    np.testing.assert_allclose(whole, step, atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
def test_a_prediction_that_is_none_leaves_the_prior(bad: float) -> None:
    constants = new_filter(equal_edges(100, 5), 0.5, 0.01)
    posteriors = np.random.default_rng(1).dirichlet(np.ones(5), 3)
    before = posteriors.copy()
    chances = np.full((3, 5), 0.2, dtype=np.float32)
    chances[1, 2] = bad
    count = refine(posteriors, np.arange(3), chances, np.array([7, 7, 7]), constants)
    assert count == 1
    np.testing.assert_allclose(
        posteriors[1], before[1] @ np.linalg.matrix_power(transitions(constants.edges), 7)
    )
    assert np.isfinite(posteriors).all()
    np.testing.assert_allclose(posteriors.sum(axis=1), 1)


def test_all_zero_probabilities_leave_the_prior_too() -> None:
    constants = new_filter(equal_edges(100, 5), 1.0, 0.01)
    posteriors = np.full((1, 5), 0.2)
    zeros = np.zeros((1, 5), dtype=np.float32)
    assert refine(posteriors, np.arange(1), zeros, np.array([0]), constants) == 1
    np.testing.assert_allclose(posteriors, 0.2)


def test_a_bin_once_ruled_out_can_come_back() -> None:
    constants = new_filter(equal_edges(100, 5), 1.0, 0.0)
    posteriors = np.empty((1, 5))
    row = np.zeros(1, dtype=np.int64)
    sure = np.eye(5, dtype=np.float32)
    start(posteriors, row, sure[:1])
    assert posteriors[0, 4] == 0
    for _ in range(5):
        refine(posteriors, row, sure[4:] * 0.98 + 0.004, np.array([1]), constants)
    assert posteriors[0, 4] > 0.9


def test_epsilon_one_is_the_raw_probe() -> None:
    constants = new_filter(geometric_edges(500, 8), 1.0, 1.0)
    random = np.random.default_rng(2)
    posteriors = random.dirichlet(np.ones(8), 4)
    chances = distribution(random, 4, 8)
    refine(posteriors, np.arange(4), chances, np.full(4, 3), constants)
    np.testing.assert_allclose(posteriors, chances, atol=1e-6)


def test_divided_by_base_rates_it_is_bayes_rule_and_as_published_it_is_not() -> None:
    """A length that stands still, states that are independent given its bin: all is known."""
    random = np.random.default_rng(3)
    common = np.array([0.7, 0.2, 0.1])  # of the bins, among training states
    likelihood = random.dirichlet(np.ones(4), 3)  # of four kinds of state, given each bin
    joint = common[:, np.newaxis] * likelihood
    says = (joint / joint.sum(axis=0)).T.astype(np.float32)  # a perfect probe: state → bins
    prompt = np.array([[0.1, 0.5, 0.4]])  # what this request's prompt says
    seen = [0, 2, 2, 1]
    exact = prompt[0] * np.prod(likelihood[:, seen], axis=1)
    exact /= exact.sum()
    row, none = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    beliefs = []
    for base in (common, None):
        belief = prompt.copy()
        for kind in seen:
            refine(belief, row, says[[kind]], none, new_filter(equal_edges(30, 3), 1, 1e-6, base))
        beliefs.append(belief[0])
    np.testing.assert_allclose(beliefs[0], exact, rtol=1e-4)
    assert abs(beliefs[1] - exact).max() > 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_two_readers_of_one_prompt_are_pooled_as_their_geometric_mean(sigma: float) -> None:
    edges = geometric_edges(400, 8)
    likely = np.random.default_rng(0).dirichlet(np.ones(8), 1).astype(np.float32)
    posteriors = np.zeros((3, 8))
    start(posteriors, np.array([1]), likely)
    pool(posteriors, np.array([1]), np.array([50.0]), np.array([sigma]), new_filter(edges, 1, 0))
    law = NormalDist(math.log(50.0), sigma)
    up_to = np.array([0.0, *(law.cdf(math.log(edge)) for edge in edges[1:-1]), 1.0])
    mean = np.sqrt(likely[0] * np.maximum(np.diff(up_to), LEAST_EPSILON))
    np.testing.assert_allclose(posteriors[1], mean / mean.sum(), rtol=1e-6)
    assert not posteriors[[0, 2]].any()


def test_starting_normalises_and_survives_nonsense() -> None:
    posteriors = np.empty((4, 3))
    chances = np.array([[2, 1, 1], [math.nan, 1, 0], [0, 0, 0], [1, math.inf, 0]], dtype=np.float32)
    assert start(posteriors, np.arange(4), chances) == 3
    np.testing.assert_allclose(posteriors[0], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(posteriors[1:], 1 / 3)


@given(widths, st.integers(0, 2**32 - 1), st.integers(0, 4000), st.floats(0, 4))
@settings(deadline=None)
def test_summaries_are_ordered_and_within_bounds(
    sizes: list[float], seed: int, most: int, stretch: float
) -> None:
    edges = some_edges(sizes)
    posteriors = np.random.default_rng(seed).dirichlet(np.full(len(sizes), 0.3), 3)
    summary = np.empty((3, 4))
    constants = new_filter(edges, 1, 0, stretch=stretch)
    summarise(posteriors, np.arange(3), np.full(3, float(most)), constants, summary)
    least = min(1.0, most)
    assert (summary >= least).all()
    assert (summary <= max(most, least)).all()
    assert (np.diff(summary[:, [LOW, MEDIAN, HIGH]], axis=1) >= 0).all()
    means = np.clip(posteriors @ midpoints(edges), least, most)
    np.testing.assert_allclose(summary[:, MEAN], means, atol=1e-9)


def test_quantiles_take_lengths_as_spread_evenly_in_a_bin() -> None:
    summary = np.empty((1, 4))
    summarise(
        np.array([[0.0, 1.0, 0.0]]),
        np.zeros(1, dtype=np.int64),
        np.array([1e6]),
        new_filter(equal_edges(300, 3), 1, 0),
        summary,
    )
    np.testing.assert_allclose(summary, [[150, 110, 150, 190]])


def test_stretch_is_a_power_of_the_ratio_to_the_median() -> None:
    posterior, row, most = np.array([[0.0, 1.0, 0.0]]), np.zeros(1, dtype=np.int64), np.array([1e6])
    summary = np.empty((1, 4))
    summarise(posterior, row, most, new_filter(equal_edges(300, 3), 1, 0, stretch=2), summary)
    np.testing.assert_allclose(summary, [[150, 110**2 / 150, 150, 190**2 / 150]])
    summarise(posterior, row, most, new_filter(equal_edges(300, 3), 1, 0, stretch=0), summary)
    np.testing.assert_allclose(summary, [[150, 150, 150, 150]])


@given(st.integers(1, 40), st.integers(40, 20_000))
def test_geometric_bins_grow_to_the_longest_length(count: int, longest: int) -> None:
    edges = geometric_edges(longest, count)
    assert edges.size == count + 1
    assert edges[0] == 0
    assert edges[-1] == longest
    sizes = np.diff(edges)
    assert (sizes > 1 - 1e-9).all()
    if count > 1 and longest > NARROWEST * count:
        assert sizes[0] == pytest.approx(NARROWEST)
        np.testing.assert_allclose(sizes[1:] / sizes[:-1], sizes[1] / sizes[0], rtol=1e-3)
        assert sizes[1] > sizes[0]


@given(st.integers(0, 5000), st.integers(1, 12))
def test_every_length_is_in_the_bin_whose_edges_hold_it(remaining: int, count: int) -> None:
    edges = equal_edges(1000, count)
    found = int(bin_of(np.array([remaining]), edges)[0])
    assert edges[found] <= remaining
    assert remaining < edges[found + 1] or found == count - 1


def test_published_bins() -> None:
    edges = equal_edges(512, 10)
    np.testing.assert_allclose(np.diff(edges), 51.2)
    np.testing.assert_allclose(midpoints(edges)[:2], [25.6, 76.8])
    assert list(bin_of(np.array([0, 51, 52, 511, 9999]), edges)) == [0, 0, 1, 9, 9]


def test_the_range_follows_the_data_and_the_limit() -> None:
    lengths = np.full(5000, 300, dtype=np.int32)
    lengths[0] = 15_000  # one endless answer
    assert longest_length(lengths, 20_000) == 300
    assert longest_length(lengths, 256) == 256
    assert longest_length(np.zeros(3, dtype=np.int32), 256) == 1


@pytest.mark.parametrize("make", [equal_edges, geometric_edges])
def test_bins_narrower_than_a_token_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="give fewer bins"):
        make(9, 10)
    with pytest.raises(InputError, match="bins do not fit"):
        make(9, 0)
