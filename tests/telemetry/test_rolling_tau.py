"""The rolling tau: an honest sample, and a floor that does not flutter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.counters import Counters
from lengthwise.predict.kendall import kendall_tau
from lengthwise.telemetry.rolling_tau import GROUP, GROUPS, LEAST, RollingTau


def feed(
    rolling: RollingTau, count: int, tau_like: float, first: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Requests whose scores are the lengths with more or less noise, ending as they arrived."""
    random = np.random.default_rng(seed + first)
    lengths = random.permutation(count) + 1
    noise = random.permutation(count) + 1
    scores = tau_like * lengths + (1 - abs(tau_like)) * noise
    for index in range(count):
        rolling.ended(first + index, float(scores[index]), int(lengths[index]))
    return lengths, scores


def test_it_is_the_tau_of_the_newest_groups() -> None:
    rolling = RollingTau(Counters())
    lengths, scores = feed(rolling, 10 * GROUP, 0.7)
    newest = slice(-GROUPS * GROUP, None)
    assert rolling.tau == pytest.approx(kendall_tau(lengths[newest], scores[newest]))


def test_without_enough_answers_there_is_none() -> None:
    rolling = RollingTau(Counters())
    feed(rolling, LEAST - 1, 1.0)
    assert rolling.tau is None
    feed(rolling, 2 * GROUP, 1.0, first=LEAST)
    assert rolling.tau is not None


@given(st.integers(0, 1000))
def test_the_order_of_ending_makes_no_difference(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = GROUPS * GROUP
    lengths = random.integers(1, 500, count)
    scores = lengths + random.normal(0, 100, count)
    rolling = RollingTau(Counters())
    for index in random.permutation(count):
        rolling.ended(int(index), float(scores[index]), int(lengths[index]))
    assert rolling.tau == pytest.approx(kendall_tau(lengths, scores))


def test_the_short_ones_that_finish_first_do_not_stand_for_all() -> None:
    # Shortest predicted first with a long queue: half of all requests are still to come.
    random = np.random.default_rng(1)
    count = 40 * GROUP
    lengths = random.lognormal(5, 1, count).astype(int) + 1
    scores = np.log(lengths) + random.normal(0, 1, count)
    truth = kendall_tau(lengths, scores)
    first = np.argsort(scores)[: count // 2]
    biased = kendall_tau(lengths[first][-GROUPS * GROUP :], scores[first][-GROUPS * GROUP :])
    assert truth is not None
    assert biased is not None
    assert biased < truth - 0.2
    rolling = RollingTau(Counters())
    for index in first:
        rolling.ended(int(index), float(scores[index]), int(lengths[index]))
    assert rolling.tau is None  # it says nothing rather than something false
    for index in np.argsort(scores)[count // 2 :]:
        rolling.ended(int(index), float(scores[index]), int(lengths[index]))
    assert rolling.tau == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("cut", [True, False])
def test_cut_answers_and_those_without_a_prediction_do_not_count(cut: bool) -> None:
    rolling = RollingTau(Counters())
    random = np.random.default_rng(0)
    for index in range(GROUPS * GROUP):
        length = int(random.integers(1, 100))
        if index % 3:
            rolling.ended(index, float(length), length)
        elif cut:
            rolling.ended(index, 1000.0 - length, None)
        else:
            rolling.ended(index, None, 1000 - length)
    assert rolling.tau == pytest.approx(1.0)


def test_a_new_predictor_is_not_judged_by_the_old_ones_requests() -> None:
    rolling = RollingTau(Counters())
    feed(rolling, 5 * GROUP, -1.0)
    assert rolling.tau == pytest.approx(-1.0)
    rolling.restart(5 * GROUP + 10)
    assert rolling.tau is None
    feed(rolling, 5 * GROUP, 1.0, first=5 * GROUP)
    assert rolling.tau == pytest.approx(1.0)


def test_the_floor_is_fallen_below_and_recovered_from_with_hysteresis() -> None:
    counters = Counters()
    rolling = RollingTau(counters)
    rolling.set_floor(0.3)
    first = 0
    seen = []
    for tau_like in (0.9, 0.0, 0.0, 0.9):
        feed(rolling, GROUPS * GROUP, tau_like, first)
        first += GROUPS * GROUP
        seen.append(rolling.below_floor)
    assert seen == [False, True, True, False]
    assert (counters.floor_falls, counters.floor_rises) == (1, 1)
    # Just above the floor is not yet recovered.
    feed(rolling, GROUPS * GROUP, 0.0, first)
    assert rolling.below_floor
    assert rolling.tau is not None
    rolling.set_floor(rolling.tau - 0.01)
    rolling._judge()
    assert rolling.below_floor
    rolling.set_floor(rolling.tau - 0.06)
    rolling._judge()
    assert not rolling.below_floor


def test_without_a_floor_predictions_are_always_believed() -> None:
    rolling = RollingTau(Counters())
    rolling.set_floor(0.5)
    feed(rolling, GROUPS * GROUP, -0.5)
    assert rolling.below_floor
    rolling.set_floor(None)
    assert not rolling.below_floor
    feed(rolling, GROUPS * GROUP, -0.5, GROUPS * GROUP)
    assert not rolling.below_floor


def test_it_stays_small_where_no_group_settles() -> None:
    rolling = RollingTau(Counters())
    for index in range(0, 400_000, GROUP // 2):
        rolling.ended(index, 1.0, 1)
    assert len(rolling._groups) < 1200
