"""Oracles and the other predictors that learn nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.predict import PredictionError, Predictor, Prompt, load_predictor
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.prediction import Prediction
from lengthwise.request import PREDICTION, REQUEST


def replay(predictor: Predictor, lengths: np.ndarray) -> np.ndarray:
    """Predictions of requests whose true lengths are sent along, shape (n, 5)."""
    return np.array(
        [
            predictor.predict(
                Prompt([1, 2, 3], {"lengthwise_true_tokens": int(n), "lengthwise_id": str(i)})
            )
            for i, n in enumerate(lengths)
        ]
    )


def test_oracle_tells_the_truth() -> None:
    prompt = Prompt([5, 6], {"lengthwise_true_tokens": 321})
    assert load_predictor("oracle").predict(prompt) == (321,) * 5


def test_declared_believes_the_caller() -> None:
    prompt = Prompt([5, 6], {"lengthwise_expected_tokens": "40", "lengthwise_true_tokens": 321})
    assert load_predictor("declared").predict(prompt) == (40,) * 5


def test_prompt_length_counts_the_prompt() -> None:
    predictor = load_predictor("prompt-length")
    assert predictor.predict(Prompt([7] * 90, {})).expected == 90
    assert predictor.predict(Prompt([], {})).expected == 1


@pytest.mark.parametrize("name", ["oracle", "declared", "noisy-oracle:0.5"])
@pytest.mark.parametrize("value", [None, "many", float("nan"), float("inf"), -3, [7]])
def test_a_hint_that_is_missing_or_no_length_is_no_prediction(name: str, value: object) -> None:
    hints = {"lengthwise_true_tokens": value, "lengthwise_expected_tokens": value}
    with pytest.raises(PredictionError, match="lengthwise_"):
        load_predictor(name).predict(Prompt([1], hints))


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shape", ["log-normal", "capped"])
def test_noisy_oracle_has_the_tau_it_is_asked_for(tau: float, shape: str) -> None:
    random = np.random.default_rng(7)
    lengths = {
        "log-normal": np.ceil(random.lognormal(5, 1, 1_500)),
        "capped": np.minimum(512, random.exponential(300, 1_500)) + 1,
    }[shape].astype(int)
    scores = replay(load_predictor(f"noisy-oracle:{tau}"), lengths)[:, 0]
    # Equal lengths get different scores, so no order of the scores can have a tau-b of 1.
    best = kendall_tau(lengths, lengths + random.uniform(size=1_500) * 1e-3)
    assert best is not None
    assert kendall_tau(lengths, scores) == pytest.approx(tau * best, abs=0.05)


def test_noisy_oracle_is_calibrated() -> None:
    lengths = np.ceil(np.random.default_rng(3).lognormal(5, 1, 2_000))
    _, expected, low, median, high = replay(load_predictor("noisy-oracle:0.5"), lengths).T
    assert ((low <= lengths) & (lengths <= high)).mean() == pytest.approx(0.8, abs=0.03)
    assert (lengths <= median).mean() == pytest.approx(0.5, abs=0.03)
    assert expected.mean() == pytest.approx(lengths.mean(), rel=0.1)


def test_noisy_oracle_with_tau_1_is_an_oracle() -> None:
    lengths = np.random.default_rng(5).integers(1, 2_000, 500)
    scores = replay(load_predictor("noisy-oracle:1"), lengths)[:, 0]
    assert kendall_tau(lengths, scores) == pytest.approx(1, abs=0.01)


def test_noisy_oracle_gives_a_request_the_same_noise_again() -> None:
    lengths = np.full(50, 100)
    first = replay(load_predictor("noisy-oracle:0.4"), lengths)
    assert np.array_equal(first, replay(load_predictor("noisy-oracle:0.4"), lengths))
    assert np.unique(first[:, 0]).size == 50


@settings(deadline=None)
@given(st.floats(0.01, 1), st.lists(st.integers(0, 100_000), min_size=1, max_size=30))
def test_noisy_oracle_always_gives_ordered_quantiles(tau: float, lengths: list[int]) -> None:
    predictions = replay(load_predictor(f"noisy-oracle:{tau}"), np.array(lengths))
    assert np.isfinite(predictions).all()
    assert (predictions[:, 2] <= predictions[:, 3]).all()
    assert (predictions[:, 3] <= predictions[:, 4]).all()
    assert (predictions[:, 1:] >= 1).all()


@pytest.mark.parametrize("spec", ["noisy-oracle:0", "noisy-oracle:2", "noisy-oracle:nan"])
def test_tau_out_of_range_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        load_predictor(spec)


@pytest.mark.parametrize("spec", ["noisy-oracle", "noisy-oracle:", "noisy-oracle:half"])
def test_noisy_oracle_needs_a_tau(spec: str) -> None:
    with pytest.raises(InputError, match=r"noisy-oracle:0\.5"):
        load_predictor(spec)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        load_predictor("orcale")


def test_a_prediction_is_what_the_record_of_a_request_has_of_it() -> None:
    assert Prediction._fields == PREDICTION
    assert set(PREDICTION) <= set(REQUEST.names or ())
