"""How good a predictor is, on rows that it has not seen, in figures and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.predict.breakdown import Part, by_estimate, by_length, by_task, root_verb
from lengthwise.predict.extract import requests_of
from lengthwise.predict.kendall import kendall_tau, tau_with_interval
from lengthwise.predict.latency import Latency, latencies, predict_timed, warm_up
from lengthwise.predict.prediction import Prediction, Predictor, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

_CHUNK = 1_000  # prompts tokenised at a time: lists of ids are large


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
    microseconds_p50: float  #: median time of one prediction, one at a time, on one core
    microseconds_p99: float
    training_seconds: float | None  #: what the artifact says; None where nothing was trained
    latency: list[Latency]  #: by batch size
    tau_by_task: list[Part]  #: by the table's column of tasks, else by `breakdown.root_verb`
    tau_by_decile: list[Part]  #: by tenth of the true lengths
    calibration: list[Part]  #: by tenth of the expected lengths


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
    predictions = np.full((count, len(Prediction._fields)), math.nan)
    microseconds = np.zeros(count)
    prompt_tokens = np.zeros(count)
    timed: list[Latency] = []
    for first in range(0, count, _CHUNK):
        prompts = _prompts(dataset, slice(first, first + _CHUNK), tokenizer)
        if first == 0:
            warm_up(predictor, prompts)
            timed = latencies(predictor, prompts)
        done = slice(first, first + len(prompts))
        prompt_tokens[done] = [len(prompt.token_ids) for prompt in prompts]
        predictions[done], microseconds[done] = predict_timed(predictor, prompts)
        if progress is not None:
            progress(first + len(prompts))
    usable = np.isfinite(predictions).all(axis=1)
    truth = dataset.lengths[usable].astype(np.float64)
    said = predictions[usable]
    score, expected, low, median, high = said.T
    tasks = dataset.tasks or [root_verb(prompt) for prompt in dataset.prompts]
    tau, tau_low, tau_high = tau_with_interval(truth, score, seed)
    ceiling, resample = _ceilings(dataset)
    metadata = getattr(predictor, "metadata", None)
    return Evaluation(
        rows=count,
        unpredicted=int(count - usable.sum()),
        tau=tau,
        tau_low=tau_low,
        tau_high=tau_high,
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
        microseconds_p50=float(np.median(microseconds)),
        microseconds_p99=float(np.quantile(microseconds, 0.99)),
        training_seconds=None if metadata is None else metadata.training.seconds,
        latency=timed,
        tau_by_task=by_task(
            [task for task, kept in zip(tasks, usable, strict=True) if kept], truth, said, seed
        ),
        tau_by_decile=by_length(truth, said, seed),
        calibration=by_estimate(truth, said, seed),
    )


def _prompts(dataset: Dataset, rows: slice, tokenizer: PromptTokenizer) -> list[Prompt]:
    """Some rows as requests; with the true length, which oracles read."""
    return [
        Prompt(token_ids, {**hints, TRUE_TOKENS: int(length)})
        for (token_ids, hints), length in zip(
            requests_of(dataset, tokenizer, rows), dataset.lengths[rows], strict=True
        )
    ]


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


SUFFIXES: Final = (".svg", ".png", ".pdf")

_SHARES: Final = (
    ("below the 10 % quantile", 0.1, "v"),
    ("below the median", 0.5, "o"),
    ("below the 90 % quantile", 0.9, "^"),
)


def plot_calibration(parts: Sequence[Part], path: Path) -> None:
    """Draw expected against true lengths, and how many answers lie below each quantile.

    Args:
        parts: by tenth of the expected length, see `breakdown.by_estimate`.
        path: the picture, in one of `SUFFIXES`.

    Raises:
        InputError: another suffix, or it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(SUFFIXES)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    lengths, shares = figure.subplots(1, 2)
    expected = [part.mean_expected for part in parts]
    _draw_lengths(lengths, parts, expected)
    for (name, wanted, marker), found in zip(
        _SHARES,
        (
            [part.below_low for part in parts],
            [part.below_median for part in parts],
            [1 - part.above_high for part in parts],
        ),
        strict=True,
    ):
        (line,) = shares.plot(expected, found, marker=marker, markersize=4, label=name)
        shares.axhline(wanted, color=line.get_color(), linewidth=0.8, linestyle="dashed")
    shares.set(xlabel="expected length, tokens", ylabel="share of answers", ylim=(0, 1))
    shares.legend(loc="center right", fontsize="small")
    for axes in (lengths, shares):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _draw_lengths(axes: Any, parts: Sequence[Part], expected: Sequence[float]) -> None:
    true = [part.mean_length for part in parts]
    longest = max([*expected, *true], default=1.0)
    axes.plot([0, longest], [0, longest], color="grey", linewidth=0.8, linestyle="dashed")
    axes.plot(expected, true, marker="o", markersize=4)
    axes.set(xlabel="expected length, tokens", ylabel="mean true length, tokens")
