"""How good a predictor is, on rows that it has not seen."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.predict.prediction import PredictionError, Predictor, Prompt
from lengthwise.predict.ranking import kendall_tau, tau_interval
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

_CHUNK = 1_000  # prompts tokenised at a time: lists of ids are large
_WARM_UP = 20  # predictions that are not timed: compilation, first touch of the tables


@dataclass(frozen=True)
class Evaluation:
    """What `lengthwise evaluate` reports. Taus are Kendall's tau-b; None where undefined."""

    rows: int
    unpredicted: int  #: rows without a usable prediction, left out of what follows
    tau: float | None  #: of the score against the length
    tau_low: float | None  #: ends of the 95 % bootstrap interval
    tau_high: float | None
    mae: float  #: mean absolute error of the expected length, tokens
    mae_median: float  #: of the predicted median, tokens
    mean_expected: float  #: of the expected lengths, tokens; near `mean_length` if calibrated
    mean_length: float  #: of the true lengths, tokens
    coverage_80: float  #: share of lengths from the 10 % to the 90 % quantile; 0.8 if calibrated
    below_low: float  #: share below the 10 % quantile
    above_high: float  #: share above the 90 % quantile
    prompt_length_tau: float | None  #: of the prompt's length alone
    ceiling_tau: (
        float | None
    )  #: of the mean of the same prompt's other answers, where there are any
    resample_tau: float | None  #: of one other answer to the same prompt
    microseconds_per_prompt: float  #: median time of one prediction, one at a time, on one core
    microseconds_p99: float


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    tokenizer: PromptTokenizer,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict every row, one at a time as a server would, and compare.

    Args:
        predictor: what to evaluate; oracles are told the true length, as in a replay.
        dataset: prompts and lengths. Where a prompt has several answers, the first is the truth
            and the others are the ceiling.
        tokenizer: that of the served model.
        seed: of the bootstrap.
        progress: called with the number of rows done.
    """
    count = len(dataset.prompts)
    predictions = np.full((count, 5), math.nan)
    microseconds = np.zeros(count)
    prompt_tokens = np.zeros(count)
    for first in range(0, count, _CHUNK):
        chunk = tokenizer.encode_chat_many(dataset.prompts[first : first + _CHUNK])
        prompts = [
            Prompt(token_ids, {TRUE_TOKENS: int(length)})
            for token_ids, length in zip(chunk, dataset.lengths[first:], strict=False)
        ]
        if first == 0:
            for prompt in prompts[:_WARM_UP]:
                _predict(predictor, prompt)
        done = slice(first, first + len(prompts))
        prompt_tokens[done] = [len(token_ids) for token_ids in chunk]
        predictions[done], microseconds[done] = _timed(predictor, prompts)
        if progress is not None:
            progress(first + len(prompts))
    usable = np.isfinite(predictions).all(axis=1)
    truth = dataset.lengths[usable].astype(np.float64)
    score, expected, low, median, high = predictions[usable].T
    interval = tau_interval(truth, score, seed)
    ceiling, resample = _ceilings(dataset)
    return Evaluation(
        rows=count,
        unpredicted=int(count - usable.sum()),
        tau=kendall_tau(truth, score),
        tau_low=None if interval is None else interval[0],
        tau_high=None if interval is None else interval[1],
        mae=_mean(np.abs(expected - truth)),
        mae_median=_mean(np.abs(median - truth)),
        mean_expected=_mean(expected),
        mean_length=_mean(truth),
        coverage_80=_mean((low <= truth) & (truth <= high)),
        below_low=_mean(truth < low),
        above_high=_mean(truth > high),
        prompt_length_tau=kendall_tau(dataset.lengths, prompt_tokens),
        ceiling_tau=ceiling,
        resample_tau=resample,
        microseconds_per_prompt=float(np.median(microseconds)),
        microseconds_p99=float(np.quantile(microseconds, 0.99)),
    )


def _timed(
    predictor: Predictor, prompts: Sequence[Prompt]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions, shape (n, 5), and the microseconds that each took, shape (n,)."""
    predictions = np.empty((len(prompts), 5))
    microseconds = np.empty(len(prompts))
    collects = gc.isenabled()
    gc.disable()
    try:
        for row, prompt in enumerate(prompts):
            started = time.perf_counter_ns()
            prediction = _predict(predictor, prompt)
            microseconds[row] = (time.perf_counter_ns() - started) / 1_000
            predictions[row] = prediction
    finally:
        if collects:
            gc.enable()
    return predictions, microseconds


def _predict(predictor: Predictor, prompt: Prompt) -> Sequence[float]:
    try:
        return predictor.predict(prompt)
    except PredictionError:
        return (math.nan,) * 5


def _ceilings(dataset: Dataset) -> tuple[float | None, float | None]:
    """Tau of the other answers' mean and of one other answer, where each prompt has another."""
    if dataset.samples is None or min(map(len, dataset.samples)) < 2:
        return None, None
    others = [lengths[1:] for lengths in dataset.samples]
    first = [lengths[0] for lengths in dataset.samples]
    return (
        kendall_tau(first, [lengths.mean() for lengths in others]),
        kendall_tau(first, [lengths[0] for lengths in others]),
    )


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else math.nan
