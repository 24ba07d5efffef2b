"""ListMLE: its loss, its gradient, and that training lowers it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lengthwise.predict.listmle import SparseRows, _sorted_lists, fit_listmle, listmle
from lengthwise.predict.ridge import PENALTY, fit_ridge, normal_scores

scores_lists = arrays.arrays(
    np.float64, st.integers(1, 12), elements=st.floats(-5, 5, allow_subnormal=False)
)


@settings(deadline=None)
@given(scores_lists)
def test_the_gradient_is_that_of_finite_differences(scores: np.ndarray) -> None:
    _, gradient = listmle(scores)
    step = 1e-5
    for place in range(scores.size):
        moved = scores.copy()
        moved[place] += step
        above, _ = listmle(moved)
        moved[place] -= 2 * step
        below, _ = listmle(moved)
        assert gradient[place] == pytest.approx((above - below) / (2 * step), abs=1e-4)


@settings(deadline=None)
@given(scores_lists)
def test_the_loss_is_the_likelihood_of_the_order(scores: np.ndarray) -> None:
    """The Plackett-Luce model: each next prompt is drawn in proportion to exp(-score)."""
    weights = np.exp(-scores)
    likelihood = math.prod(weights[i] / weights[i:].sum() for i in range(scores.size))
    assert listmle(scores)[0] == pytest.approx(-math.log(likelihood), abs=1e-4)


def test_orders_have_probabilities_that_add_up_to_one() -> None:
    scores = np.array([0.3, -1.2, 0.8, 2.0])
    total = sum(
        math.exp(-listmle(scores[list(order)])[0]) for order in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_large_scores_do_not_overflow() -> None:
    loss, gradient = listmle(np.array([-1e4, 0.0, 1e4]))
    assert math.isfinite(loss)
    assert np.isfinite(gradient).all()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_lists_are_dealt_without_repeats_and_sorted(count: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 5, count).astype(float)  # many ties
    lists = _sorted_lists(lengths, size, random)
    assert np.unique(lists).size == lists.size
    assert lists.size > count - min(size, count)
    assert (np.diff(lengths[lists], axis=1) >= 0).all()


def test_ties_fall_in_random_order() -> None:
    lists = _sorted_lists(np.zeros(2), 2, np.random.default_rng(0))
    orders = {
        tuple(_sorted_lists(np.zeros(2), 2, np.random.default_rng(seed))[0]) for seed in range(20)
    }
    assert lists.shape == (1, 2)
    assert orders == {(0, 1), (1, 0)}


def _one_hot(groups: np.ndarray) -> SparseRows:
    return SparseRows(
        np.arange(groups.size + 1), groups.astype(np.int32), np.ones(groups.size, np.float32)
    )


def test_training_learns_an_order_from_nothing() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 4, 4_000)
    lengths = random.exponential(np.array([10.0, 40.0, 160.0, 640.0])[groups])
    weights = fit_listmle(_one_hot(groups), lengths, np.zeros(4), seed=1)
    assert (np.diff(weights) > 0).all()


def test_the_same_seed_gives_the_same_weights() -> None:
    groups = np.arange(300) % 5
    lengths = (groups * 7 % 5).astype(float)
    first = fit_listmle(_one_hot(groups), lengths, np.zeros(5), seed=3)
    again = fit_listmle(_one_hot(groups), lengths, np.zeros(5), seed=3)
    other = fit_listmle(_one_hot(groups), lengths, np.zeros(5), seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_ridge_solves_its_normal_equations() -> None:
    random = np.random.default_rng(0)
    dense = random.normal(size=(60, 9)).astype(np.float32)
    rows = SparseRows(
        np.arange(0, 60 * 9 + 1, 9), np.tile(np.arange(9, dtype=np.int32), 60), dense.ravel()
    )
    targets = random.normal(size=60)
    exact = np.linalg.solve(
        dense.T @ dense + PENALTY * np.eye(9), dense.T @ (targets - targets.mean())
    )
    assert fit_ridge(rows, 9, targets) == pytest.approx(exact, abs=0.01)


def test_normal_scores_are_ranks_on_a_bell_curve() -> None:
    scores = normal_scores(np.array([5.0, 1e9, 5.0, 1.0]))
    assert scores[0] == scores[2]
    assert scores[3] < scores[0] < scores[1] < 2
    assert normal_scores(np.arange(1_000.0)).std() == pytest.approx(1.0, abs=0.01)
