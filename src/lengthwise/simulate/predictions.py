"""Predictions for whole traces, where there is no text to predict from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from lengthwise.errors import InputError
from lengthwise.workload.trace import Trace

KINDS: Final = ("oracle", "noisy-oracle:TAU", "prompt-length")

_QUANTILE_90: Final = float(ndtri(0.9))
_POINTS: Final = ndtri((np.arange(32) + 0.5) / 32)  # where a posterior is evaluated for its mean


def trace_predictions(
    trace: Trace, predictor: str, seed: int | Sequence[int] = 0
) -> NDArray[np.float64]:
    """Score, expected, low, median and high for each request, shape [n, 5].

    Args:
        trace: the requests.
        predictor: one of KINDS.
        seed: of the noise; a seed and the number of one of its streams, as numpy takes them.

    Raises:
        InputError: a predictor that needs the text of prompts, or none of that name.
    """
    kind, _, argument = predictor.partition(":")
    if predictor == "oracle":
        return certain(trace.output_tokens)
    if predictor == "prompt-length":
        return certain(trace.prompt_tokens)
    if kind == "noisy-oracle":
        try:
            tau = float(argument)
        except ValueError:
            tau = math.nan
        if not 0.0 < tau <= 1.0:
            raise InputError(
                f"{predictor}: tau must be above 0 and at most 1, for example noisy-oracle:0.5"
            )
        return noisy(trace.output_tokens, tau, seed)
    raise InputError(
        f"predictor {predictor!r} cannot predict a trace without prompts: take one of "
        f"{', '.join(KINDS)}, or simulate a table of prompts"
    )


def certain(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Predictions without doubt, shape [n, 5]."""
    return np.repeat(np.maximum(tokens, 1).astype(np.float64)[:, None], 5, axis=1)


def noisy(tokens: NDArray[np.int64], tau: float, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """The truth with noise, so that its Kendall tau-b is about `tau`; calibrated.

    As `predict.load.NoisyOracle`, for which the whole trace is known: a length's normal score
    is mixed with noise, ρ·z + √(1 − ρ²)·ε with ρ = sin(π/2·τ) (Greiner's relation), and mean and
    quantiles are those of the length given its noisy score.

    Args:
        tokens: true lengths, shape [n].
        tau: above 0, at most 1.
        seed: of the noise.

    Returns:
        Score, expected, low, median and high, shape [n, 5].
    """
    n = len(tokens)
    if n == 0:
        return np.zeros((0, 5))
    lengths = np.sort(tokens).astype(np.float64)
    middle = np.searchsorted(lengths, tokens, "left") + np.searchsorted(lengths, tokens, "right")
    z = ndtri(np.clip(middle / 2, 0.5, n - 0.5) / n)
    rho = math.sin(math.pi / 2 * tau)
    spread = math.sqrt(max(0.0, 1.0 - rho * rho))
    score = rho * z + spread * np.random.default_rng(seed).standard_normal(n)

    def length_at(deviations: float) -> NDArray[np.float64]:
        place = np.clip(ndtr(rho * score + spread * deviations) * n - 0.5, 0.0, n - 1.0)
        interpolated: NDArray[np.float64] = np.interp(place, np.arange(n), lengths)
        return interpolated

    expected = sum(length_at(float(point)) for point in _POINTS) / len(_POINTS)
    low, median, high = (length_at(x) for x in (-_QUANTILE_90, 0.0, _QUANTILE_90))
    return np.stack([score, expected, low, median, high], axis=1)
