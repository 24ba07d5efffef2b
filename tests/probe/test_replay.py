"""The filter over recorded answers, and the fit of its constants."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from lengthwise.probe.filter_replay import (
    Record,
    base_rates,
    fit_refinement,
    in_turns,
    raw,
    refined,
)
from lengthwise.probe.refine import HIGH, LOW, MEAN, Filter, geometric_edges, midpoints, new_filter
from tests.support.synthetic_states import coarsen


@pytest.fixture(scope="module", autouse=True)
def _coarse_grid() -> Iterator[None]:
    """Fewer constants of the filter are tried: hundreds of replays teach these tests nothing."""
    with pytest.MonkeyPatch.context() as patched:
        coarsen(patched)
        yield


def some_record(noise: float, seed: int = 0, copies: bool = False) -> tuple[Record, np.ndarray]:
    """Answers, and a probe that is off by a factor e^noise, by the same one each time if asked."""
    random = np.random.default_rng(seed)
    edges = geometric_edges(200, 12)
    length = np.clip(random.lognormal(3.5, 0.8, 80), 2, 200).astype(int)
    request = np.repeat(np.arange(80), length - 1)
    age = np.concatenate([np.arange(1, each) for each in length])
    remaining = length[request] - age
    off = random.normal(0, noise, 80)[request] if copies else random.normal(0, noise, age.size)
    seen = np.log(remaining) + off

    def soft(values: np.ndarray) -> np.ndarray:
        spread = np.maximum(noise, 0.3)
        scores = -0.5 * ((values[:, np.newaxis] - np.log(midpoints(edges))) / spread) ** 2
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32)

    return Record(
        request=request,
        age=age,
        remaining=remaining,
        most=(512.0 - age),
        whole=np.full((80, 12), 1 / 12, dtype=np.float32),
        probe=soft(seen),
    ), edges


RATES = np.full(12, 1 / 12)


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize("copies", [False, True])
def test_fitted_refinement_is_not_worse_than_raw(interval: int, copies: bool) -> None:
    """Never on the rows that it was fitted to, and on others by next to nothing."""
    record, edges = some_record(0.8, copies=copies)
    constants = fit_refinement(record, edges, RATES, interval).filter(edges, RATES)
    for seed, slack in ((0, 1.0), (1, 1.05)):
        fresh, _ = some_record(0.8, seed=seed, copies=copies)
        means = refined(fresh, constants, interval)[:, MEAN]
        alone = raw(fresh, edges, interval)
        error, least = (np.abs(each - fresh.remaining).mean() for each in (means, alone))
        assert error <= least * slack + 1e-6  # the network's numbers are float32


def test_evidence_that_repeats_itself_is_tempered() -> None:
    independent, edges = some_record(0.8)
    same, _ = some_record(0.8, copies=True)
    repeated, fresh = (fit_refinement(each, edges, RATES, 1) for each in (same, independent))
    # What came before counts less: by the exponent, or by forgetting more at each step.
    assert repeated.temper < fresh.temper or repeated.epsilon > fresh.epsilon


@pytest.mark.parametrize("copies", [False, True])
def test_fitted_quantiles_hold_what_they_say(copies: bool) -> None:
    record, edges = some_record(0.8, copies=copies)
    constants = fit_refinement(record, edges, RATES, 1).filter(edges, RATES)

    def held(each: Record, fitted: Filter) -> float:
        summary = refined(each, fitted)
        return float(
            ((summary[:, LOW] <= each.remaining) & (each.remaining <= summary[:, HIGH])).mean()
        )

    assert held(record, constants) == pytest.approx(0.8, abs=0.02)
    fresh, _ = some_record(0.8, seed=1, copies=copies)
    unfitted = held(fresh, constants._replace(stretch=1.0))
    assert abs(held(fresh, constants) - 0.8) < max(0.06, abs(unfitted - 0.8))


def test_base_rates_count_each_state_for_what_it_stands_for() -> None:
    said = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]], dtype=np.float32)
    rates = base_rates(said, np.array([1.0, 3.0], dtype=np.float32))
    np.testing.assert_allclose(rates[:2], [0.6, 0.4], rtol=1e-6)
    assert 0 < rates[2] < 0.001  # never divided by nothing


def test_turns_hold_each_moment_once_and_no_request_twice() -> None:
    request = np.array([0, 0, 0, 2, 5, 5])
    turns = in_turns(request)
    assert [list(turn) for turn in turns] == [[0, 3, 4], [1, 5], [2]]
    assert in_turns(np.zeros(0, dtype=np.int64)) == []


def test_between_predictions_estimates_count_down() -> None:
    record, edges = some_record(0.5)
    constants = new_filter(edges, 0.5, 0.01)
    means = refined(record, constants, 8)[:, MEAN]
    later = (record.age - 1) % 8 != 0
    before = np.flatnonzero(later) - 1
    np.testing.assert_allclose(means[later], np.maximum(means[before] - 1, 1))
    at = ~later
    assert not np.allclose(means[at], refined(record, constants)[at, MEAN])
