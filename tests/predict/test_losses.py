"""Losses: what they say, and that their gradients are those of finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lengthwise.errors import InputError
from lengthwise.predict.losses import (
    LONGEST,
    LOSSES,
    QUANTILES,
    bucket_numbers,
    bucketed,
    cross_entropy,
    huber,
    listmle,
    listnet,
    log_lengths,
    loss_named,
    pairwise,
    pinball,
)

numbers = st.floats(-5, 5, allow_subnormal=False)
scores_lists = arrays.arrays(np.float64, st.integers(1, 12), elements=numbers)
BUCKET = 10


@st.composite
def batches(draw: st.DrawFn, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets as a loss takes them."""
    count = draw(st.integers(1, 10))
    lengths = draw(arrays.arrays(np.int64, count, elements=st.integers(0, 60))).astype(float)
    columns = {"cross-entropy": 7, "pinball": len(QUANTILES)}.get(name)
    shape = (count,) if columns is None else (count, columns)
    scores = draw(arrays.arrays(np.float64, shape, elements=numbers))
    return scores, LOSSES[name].targets(lengths, BUCKET)


@pytest.mark.parametrize("name", LOSSES)
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_gradients_are_those_of_finite_differences(name: str, data: st.DataObject) -> None:
    scores, targets = data.draw(batches(name))
    loss = LOSSES[name].function
    value, gradient = loss(scores, targets)
    assert math.isfinite(value)
    assert gradient.shape == scores.shape
    step = 1e-6
    for place in np.ndindex(scores.shape):
        moved = scores.copy()
        moved[place] += step
        above, _ = loss(moved, targets)
        moved[place] -= 2 * step
        below, _ = loss(moved, targets)
        rise, fall = (above - value) / step, (value - below) / step
        # Where a loss has a corner, any slope between the two sides is one.
        assert min(rise, fall) - 1e-4 <= gradient[place] <= max(rise, fall) + 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    random = np.random.default_rng(0)
    columns = {"cross-entropy": 11, "pinball": len(QUANTILES)}.get(name)
    scores = random.normal(size=(32,) if columns is None else (32, columns))
    targets = LOSSES[name].targets(random.integers(1, 110, 32).astype(float), BUCKET)
    loss = LOSSES[name].function
    value, gradient = loss(scores, targets)
    assert loss(scores - 1e-3 * gradient, targets)[0] < value


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.ranks])
def test_losses_that_order_want_short_before_long(name: str) -> None:
    targets = LOSSES[name].targets(np.array([5.0, 300.0, 40.0]), 1)
    right, _ = LOSSES[name].function(np.array([0.0, 4.0, 2.0]), targets)
    wrong, _ = LOSSES[name].function(np.array([4.0, 0.0, 2.0]), targets)
    assert right < wrong


@settings(deadline=None)
@given(scores_lists)
def test_listmle_is_the_likelihood_of_the_order(scores: np.ndarray) -> None:
    """The Plackett-Luce model: each next prompt is drawn in proportion to exp(-score)."""
    weights = np.exp(-scores)
    likelihood = math.prod(weights[i] / weights[i:].sum() for i in range(scores.size))
    value, _ = listmle(scores, np.arange(scores.size, dtype=float))
    assert value == pytest.approx(-math.log(likelihood), abs=1e-4)


@settings(deadline=None)
@given(scores_lists, st.randoms(use_true_random=False))
def test_listmle_does_not_depend_on_how_a_list_is_dealt(scores: np.ndarray, random: object) -> None:
    targets = np.arange(scores.size, dtype=float)
    dealt = np.array(sorted(range(scores.size), key=lambda _: random.random()))  # type: ignore[attr-defined]
    value, gradient = listmle(scores, targets)
    again, dealt_gradient = listmle(scores[dealt], targets[dealt])
    assert again == pytest.approx(value)
    assert dealt_gradient == pytest.approx(gradient[dealt])


def test_orders_have_probabilities_that_add_up_to_one() -> None:
    scores = np.array([0.3, -1.2, 0.8, 2.0])
    total = sum(
        math.exp(-listmle(scores, np.array(ranks, dtype=float))[0])
        for ranks in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_listmle_breaks_ties_as_they_are_dealt() -> None:
    first, _ = listmle(np.array([1.0, 2.0]), np.zeros(2))
    other, _ = listmle(np.array([2.0, 1.0]), np.zeros(2))
    assert first < other


def test_large_scores_do_not_overflow() -> None:
    scores = np.array([-1e4, 0.0, 1e4])
    for loss in (listmle, listnet, pairwise):
        value, gradient = loss(scores, np.arange(3.0))
        assert math.isfinite(value)
        assert np.isfinite(gradient).all()
    value, gradient = cross_entropy(scores[np.newaxis], np.array([1.0]))
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()


def test_listnet_is_least_where_scores_are_the_targets() -> None:
    targets = np.log([3.0, 50.0, 700.0])
    least, gradient = listnet(targets + 4, targets)  # scores have no zero
    assert gradient == pytest.approx(0, abs=1e-12)
    chances = np.array([1 / 3, 1 / 50, 1 / 700]) / (1 / 3 + 1 / 50 + 1 / 700)
    assert least == pytest.approx(-(chances * np.log(chances)).sum())


def test_pairwise_leaves_pairs_alone_that_are_a_margin_apart() -> None:
    assert pairwise(np.array([0.0, 1.5]), np.array([10.0, 20.0]))[0] == 0
    assert pairwise(np.array([0.0, 0.4]), np.array([10.0, 20.0]))[0] == pytest.approx(0.6)
    assert pairwise(np.array([3.0, 0.0]), np.array([10.0, 10.0]))[0] == 0


def test_cross_entropy_of_equal_scores_is_that_of_guessing() -> None:
    assert cross_entropy(np.zeros((4, 8)), np.arange(4.0))[0] == pytest.approx(4 * math.log(8))


def test_huber_is_a_square_near_and_a_line_far() -> None:
    assert huber(np.array([0.5]), np.array([0.0]))[0] == pytest.approx(0.125)
    assert huber(np.array([7.0]), np.array([0.0]))[0] == pytest.approx(6.5)


def test_pinball_is_least_at_the_quantiles() -> None:
    targets = np.random.default_rng(0).normal(size=4_001)
    best = np.quantile(targets, QUANTILES)
    least, _ = pinball(np.tile(best, (targets.size, 1)), targets)
    for shift in (-0.1, 0.1):
        for column in range(len(QUANTILES)):
            moved = best.copy()
            moved[column] += shift
            assert pinball(np.tile(moved, (targets.size, 1)), targets)[0] > least


def test_buckets_are_those_of_the_paper() -> None:
    lengths = np.array([0.0, 9.0, 10.0, 8_192.0, 15_000.0])
    assert bucket_numbers(lengths, 10).tolist() == [0, 0, 1, 819, 819]
    assert bucket_numbers(lengths, 820).tolist() == [0, 0, 0, 9, 9]
    assert bucketed(lengths, 10).tolist() == [4.5, 4.5, 14.5, 8_194.5, 8_194.5]
    assert bucketed(lengths, 1)[-1] == LONGEST


def test_a_bucket_of_one_keeps_fractions() -> None:
    assert bucketed(np.array([12.7]), 1)[0] == 12.7


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(1, 1_000))
def test_no_transform_turns_an_order_round(short: int, long: int, bucket: int) -> None:
    lengths = np.sort(np.array([short, long], dtype=float))
    for transform in (bucketed, log_lengths, bucket_numbers):
        first, second = transform(lengths, bucket)
        assert first <= second


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'listmle'"):
        loss_named("listlme")
