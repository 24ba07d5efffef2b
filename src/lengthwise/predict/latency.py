"""How long predictions take, one at a time and together."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.prediction import Prediction, PredictionError, Predictor, Prompt

BATCH_SIZES: Final = (1, 8, 64, 512)

_WARM_UP: Final = 20  #: predictions that are not timed: compilation, first touch of the tables
_MOST_SECONDS: Final = 10.0  #: spent on each batch size, whatever the predictor
_MOST_BATCHES: Final = 200
_LEAST_BATCHES: Final = 10


@dataclass(frozen=True)
class Latency:
    """What a batch takes, on one core unless the predictor uses more by itself."""

    batch: int  #: prompts predicted in one call
    batches: int  #: timed
    microseconds_p50: float  #: of the whole batch
    microseconds_p99: float
    microseconds_per_prompt: float  #: median of the batch over its size


def latencies(predictor: Predictor, prompts: Sequence[Prompt]) -> list[Latency]:
    """Time batches of each of `BATCH_SIZES`; those larger than the number of prompts are left out.

    A predictor that is quicker on many prompts at once has a method `predict_many`, as
    `SlowPredictor` says; others are asked one prompt after the other.
    """
    found = []
    for size in BATCH_SIZES:
        if size <= len(prompts):
            taken = list(_times(predictor, _batches(prompts, size)))
            median, high = map(float, np.quantile(taken, [0.5, 0.99]))
            found.append(Latency(size, len(taken), median, high, median / size))
    return found


def predict_timed(
    predictor: Predictor, prompts: Sequence[Prompt]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict prompts one at a time, as they would come to a server.

    Returns:
        predictions, shape (n, 5), NaN where there is none; and the microseconds that each took,
        shape (n,).
    """
    predictions = np.empty((len(prompts), len(Prediction._fields)))
    microseconds = np.empty(len(prompts))
    with _no_collection():
        for row, prompt in enumerate(prompts):
            started = time.perf_counter_ns()
            prediction = _predict(predictor, prompt)
            microseconds[row] = (time.perf_counter_ns() - started) / 1_000
            predictions[row] = prediction
    return predictions, microseconds


def warm_up(predictor: Predictor, prompts: Sequence[Prompt]) -> None:
    """Predict a few prompts that are not timed."""
    for prompt in prompts[:_WARM_UP]:
        _predict(predictor, prompt)


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Batches of prompts one after the other, from the first again after the last."""
    following = itertools.cycle(prompts)
    for _ in range(min(_MOST_BATCHES, max(_LEAST_BATCHES, len(prompts) // size))):
        yield list(itertools.islice(following, size))


def _times(predictor: Predictor, batches: Iterable[Sequence[Prompt]]) -> Iterator[float]:
    """The microseconds that each batch takes, until the time for it is over."""
    together = getattr(predictor, "predict_many", None)
    ends = time.perf_counter() + _MOST_SECONDS
    with _no_collection():
        for batch in batches:
            started = time.perf_counter_ns()
            if together is None:
                for prompt in batch:
                    _predict(predictor, prompt)
            else:
                together(batch)
            yield (time.perf_counter_ns() - started) / 1_000
            if time.perf_counter() > ends:
                return


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of garbage from what is timed."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _predict(predictor: Predictor, prompt: Prompt) -> Sequence[float]:
    try:
        return predictor.predict(prompt)
    except PredictionError:
        return (np.nan,) * len(Prediction._fields)
