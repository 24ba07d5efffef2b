"""Kendall's tau-b and its interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.predict.kendall import kendall_tau, tau_interval

numbers = st.one_of(st.integers(0, 9).map(float), st.floats(allow_nan=False))
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=25)


@settings(deadline=None)
@given(pairs)
def test_tau_is_its_definition(rows: list[tuple[int, int]]) -> None:
    """Concordant minus discordant pairs, over the geometric mean of those untied on each side."""
    net = untied_truth = untied_scores = 0
    for (a, x), (b, y) in itertools.combinations(rows, 2):
        net += np.sign(a - b) * np.sign(x - y)
        untied_truth += a != b
        untied_scores += x != y
    tau = kendall_tau([a for a, _ in rows], [x for _, x in rows])
    if untied_truth == 0 or untied_scores == 0:
        assert tau is None
    else:
        assert tau == pytest.approx(net / math.sqrt(untied_truth * untied_scores))


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=200))
def test_tau_is_scipys(rows: list[tuple[float, float]]) -> None:
    from scipy.stats import kendalltau

    truth, scores = zip(*rows, strict=True)
    tau = kendall_tau(truth, scores)
    reference = kendalltau(truth, scores).statistic
    assert math.isnan(reference) if tau is None else tau == pytest.approx(reference)


def test_tau_of_one_row_is_undefined() -> None:
    assert kendall_tau([1], [2]) is None
    assert tau_interval([1], [2]) is None
    assert tau_interval([1, 1], [1, 2]) is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """For normals of correlation 0.7 the true tau is 2/π·arcsin 0.7."""
    truth = 2 / math.pi * math.asin(0.7)
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        x = random.normal(size=150)
        y = 0.7 * x + math.sqrt(1 - 0.49) * random.normal(size=150)
        interval = tau_interval(x, y, seed)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 33  # 38 of 40 are expected; 33 or fewer in one of 10,000 runs


def test_an_interval_of_groups_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 60 conversations of 15 answers each: drawn one by one, about half of them would."""
    covered = alone = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        shared = random.normal(size=(2, 60, 1))
        noise = random.normal(size=(2, 60, 15))
        scores = (0.9 * shared[0] + 0.44 * noise[0]).ravel()
        truth = (0.5 * shared[0] + 0.75 * shared[1] + 0.43 * noise[1]).ravel()
        groups = np.arange(60).repeat(15)
        # Of normals of this correlation, whatever is shared.
        tau = 2 / math.pi * math.asin(0.45 / math.hypot(0.9, 0.44) / math.hypot(0.5, 0.75, 0.43))
        together, apart = (
            tau_interval(truth, scores, seed, groups),
            tau_interval(truth, scores, seed),
        )
        assert together is not None
        assert apart is not None
        covered += together[0] <= tau <= together[1]
        alone += apart[0] <= tau <= apart[1]
    assert covered >= 33
    assert alone < 30


def test_groups_of_one_row_change_nothing_and_one_group_has_no_interval() -> None:
    random = np.random.default_rng(1)
    truth, scores = random.normal(size=(2, 80))
    assert tau_interval(truth, scores, 3, random.permutation(80)) == tau_interval(truth, scores, 3)
    assert tau_interval(truth, scores, 3, np.zeros(80, dtype=np.int64)) is None
