"""Predictions for traces, which have no prompts: as good as asked, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.simulate.predictions import noisy, trace_predictions
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_noisy_predictions_are_as_good_as_asked_and_calibrated(tau: float) -> None:
    from scipy.stats import kendalltau

    lengths = synthetic_trace(
        20_000, 1.0, mean_prompt=100, mean_output=300, sigma=0.9, seed=5
    ).output_tokens
    made = noisy(lengths, tau, seed=1)
    assert kendalltau(made[:4000, 0], lengths[:4000]).statistic == pytest.approx(tau, abs=0.03)
    assert made[:, 1].mean() == pytest.approx(lengths.mean(), rel=0.05)
    covered = (lengths >= made[:, 2]) & (lengths <= made[:, 4])
    assert covered.mean() == pytest.approx(0.8, abs=0.03)
    assert noisy(lengths[:0], tau, 0).shape == (0, 5)


def test_predictors_of_text_are_refused_for_traces() -> None:
    trace = Trace("one", np.array([0.0]), np.array([3]), np.array([4]), [], "synthetic")
    assert trace_predictions(trace, "oracle").tolist() == [[4.0] * 5]
    assert trace_predictions(trace, "prompt-length").tolist() == [[3.0] * 5]
    for bad, message in (("build/p", "without prompts"), ("noisy-oracle:2", "at most 1")):
        with pytest.raises(InputError, match=message):
            trace_predictions(trace, bad)
