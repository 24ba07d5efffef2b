"""The filter over recorded answers, by the functions that serving runs; and its constants' fit."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.probe.probe_folder import Refinement
from lengthwise.probe.refine import (
    HIGH,
    LEAST_EPSILON,
    LOW,
    MEAN,
    MEDIAN,
    Filter,
    midpoints,
    refine,
    start,
    summarise,
)

#: Tried on validation rows, besides the raw probe: temper 1, epsilon 1 and no correction.
TEMPERS: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
EPSILONS: Final = (LEAST_EPSILON, 0.001, 0.003, 0.01, 0.03, 0.1)
CORRECTIONS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  #: 0 is the paper's filter, 1 is Bayes' rule
INTERVALS: Final = (1, 2, 4, 8, 16)  #: tokens between predictions for which constants are fitted

_LEAST_RATE: Final = 1e-4
_NO_REACH: Final = 1e-6  # of a quantile that is the median; no power moves it
_STRETCHES: Final = (0.25, 8.0)


class Record(NamedTuple):
    """Answers that have been given: moments sorted by request, then by age."""

    request: NDArray[np.int64]  #: [moments], 0 ≤ request < requests, ascending
    age: NDArray[np.int64]  #: [moments], output tokens so far, ascending within a request
    remaining: NDArray[np.int64]  #: [moments], output tokens still to come
    most: NDArray[np.float64]  #: [moments], that may still come: max_tokens − age
    whole: NDArray[np.float32]  #: [requests, bins], what the prompt says of the whole length
    probe: NDArray[np.float32]  #: [moments, bins], what the probe says of what remains


def every(record: Record, interval: int) -> NDArray[np.bool_]:
    """Which moments have a prediction, if there is one every `interval` tokens, [moments].

    The first moment of a request has one in any case.
    """
    begins = np.diff(record.request, prepend=-1) != 0
    found: NDArray[np.bool_] = ((record.age - 1) % interval == 0) | begins
    return found


def refined(record: Record, constants: Filter, interval: int = 1) -> NDArray[np.float64]:
    """What serving would have believed at every moment.

    A request starts at age 0 with what its prompt says, and is refined at each prediction. Between
    predictions the estimates fall by 1 with each token.

    Args:
        record: the answers.
        constants: of the filter.
        interval: tokens between predictions.

    Returns:
        float64 [moments, 4], the columns of `refine.summarise`.
    """
    requests, bins = record.whole.shape
    posteriors = np.empty((requests, bins))
    start(posteriors, np.arange(requests), record.whole)
    reached = np.zeros(requests, dtype=np.int64)  # the age of the last prediction
    summaries = np.empty((record.age.size, HIGH + 1))
    predicted = np.flatnonzero(every(record, interval))
    for moments in in_turns(record.request[predicted]):
        now = predicted[moments]
        rows, age = record.request[now], record.age[now]
        refine(posteriors, rows, record.probe[now], age - reached[rows], constants)
        reached[rows] = age
        summary = np.empty((now.size, HIGH + 1))
        summarise(posteriors, rows, record.most[now], constants, summary)
        summaries[now] = summary
    if interval > 1:
        _count_down_between(summaries, predicted, record)
    return summaries


def raw(record: Record, edges: NDArray[np.float64], interval: int = 1) -> NDArray[np.float64]:
    """The mean of the probe's newest prediction alone, counted down until the next, [moments]."""
    estimates = (record.probe @ midpoints(edges))[:, np.newaxis]
    predicted = np.flatnonzero(every(record, interval))
    if interval > 1:
        _count_down_between(estimates, predicted, record)
    return within(estimates[:, 0], record.most)


def counted_down(
    whole: NDArray[np.float64], age: NDArray[np.int64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a prediction of the whole length says at an age, all [moments]."""
    return within(whole - age, most)


def within(estimates: NDArray[np.float64], most: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimates of what remains: at least 1, since the answer goes on, and at most `most`."""
    bounded: NDArray[np.float64] = np.minimum(np.maximum(estimates, 1.0), most)
    return bounded


def in_turns(request: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The first moment of every request, then the second of every request, and so on.

    Args:
        request: [moments], ascending.

    Returns:
        for each turn the indices of its moments.
    """
    begins = np.flatnonzero(np.diff(request, prepend=-1))
    sizes = np.diff(begins, append=request.size)
    turn = np.arange(request.size) - np.repeat(begins, sizes)
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.cumsum(np.bincount(turn))[:-1]) if request.size else []


def base_rates(probe: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """How common the probe takes each bin to be, over all states: float64 [bins], > 0.

    Args:
        probe: what it says of training states, [moments, bins].
        weights: how much each counts, [moments].
    """
    mean: NDArray[np.float64] = weights.astype(np.float64) @ probe / weights.sum(dtype=np.float64)
    # A bin that nothing was ever in must not become the likeliest by being divided by nothing.
    return np.maximum(mean, _LEAST_RATE)


def fit_refinement(
    record: Record, edges: NDArray[np.float64], rates: NDArray[np.float64], interval: int
) -> Refinement:
    """The constants with the lowest mean absolute error of the mean, and the quantiles' stretch.

    The raw probe is among those tried, so refinement cannot be worse than it on these rows.

    Args:
        record: validation answers.
        edges: of the bins.
        rates: the bins' base rates.
        interval: tokens between predictions.
    """

    def summaries(constants: Refinement) -> NDArray[np.float64]:
        return refined(record, constants.filter(edges, rates), interval)

    def error(constants: Refinement) -> float:
        return float(np.abs(summaries(constants)[:, MEAN] - record.remaining).mean())

    tried = [
        Refinement(interval=interval, correction=correction, temper=temper, epsilon=epsilon)
        for correction, temper, epsilon in (
            *itertools.product(CORRECTIONS, TEMPERS, EPSILONS),
            (0.0, 1.0, 1.0),
        )
    ]
    best = min(tried, key=error)
    stretch = _stretch(summaries(best), record.remaining)
    return best.model_copy(update={"stretch": stretch})


def _stretch(summaries: NDArray[np.float64], remaining: NDArray[np.int64]) -> float:
    """The power that makes the quantiles hold 80 % of what remained: split-conformal, in logs.

    Each length needs a power of its own to be held: how far it lies from the median, against how
    far the quantile on its side does. The 80 % quantile of these is taken.
    """
    low, median, high = (np.log(summaries[:, column]) for column in (LOW, MEDIAN, HIGH))
    off = np.log(remaining) - median
    reach = np.where(off > 0, high - median, median - low)
    needed = np.abs(off) / np.maximum(reach, _NO_REACH)
    return float(np.clip(np.quantile(needed, 0.8), *_STRETCHES))


def _count_down_between(
    estimates: NDArray[np.float64], predicted: NDArray[np.int64], record: Record
) -> None:
    """Fill in the moments without a prediction, in place: the last estimate less what passed."""
    last = np.searchsorted(predicted, np.arange(record.age.size), side="right") - 1
    source = predicted[last]
    passed = record.age - record.age[source]
    estimates[:] = estimates[source] - passed[:, np.newaxis]
    np.maximum(estimates, 1.0, out=estimates)
    np.minimum(estimates, record.most[:, np.newaxis], out=estimates)
