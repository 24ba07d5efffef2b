"""Predictions for the requests in the table, and what happens when there is none.

A request is predicted once, soon after it arrives, at most `PER_STEP` in one step so that a burst
never holds a step up. Until then, and for good when the predictor raises or says something
unusable, it ranks as the running median of recent predictions; when none was ever made all
requests look alike, which is exactly fcfs.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from typing import Any, Final

import numpy as np

from lengthwise.compiled import compiled
from lengthwise.predict.features import LORA
from lengthwise.predict.prediction import Prediction, Predictor, Prompt
from lengthwise.request import FREE, RequestTable
from lengthwise.vllm.counters import Counters
from lengthwise.vllm.table import LiveTable

logger = logging.getLogger("vllm.lengthwise")

PER_STEP: Final = 128
_RECENT: Final = 512
_MEDIAN_EVERY: Final = 32
_RECORDED: Final = {
    "expected_tokens": "expected",
    "score": "score",
    "low_tokens": "low",
    "median_tokens": "median",
    "high_tokens": "high",
}
_UNKNOWN: Final = Prediction(score=0.0, expected=128.0, low=128.0, median=128.0, high=128.0)


def prompt_of(request: Any) -> Prompt:
    """All that a predictor may see of a vLLM request."""
    sampling = request.sampling_params
    hints = (sampling.extra_args if sampling is not None else None) or {}
    if request.lora_request is not None:
        hints = {**hints, LORA: request.lora_request.lora_name}
    return Prompt(request.prompt_token_ids or (), hints)


def warm_up_predictor(predictor: Predictor) -> None:
    """Let a predictor compile what it needs before a request waits for it."""
    with contextlib.suppress(Exception):  # one that needs hints says so for each request
        predictor.predict(Prompt([0, 1, 2], {}))


def usable(prediction: Prediction) -> bool:
    """Whether every number is finite and every length positive."""
    return all(map(math.isfinite, prediction)) and min(prediction[1:]) > 0.0


class Predictions:
    """Fills the prediction columns of a live table."""

    def __init__(self, live: LiveTable, counters: Counters) -> None:
        self._live = live
        self._counters = counters
        self._predictor: Predictor | None = None
        self._pending: deque[str] = deque()
        self._recent: deque[Prediction] = deque(maxlen=_RECENT)
        self._median = _UNKNOWN
        self._since_median = 0
        self._complained = False

    def use(self, predictor: Predictor | None) -> None:
        """Change the predictor and predict every live request anew.

        Scores of two predictors cannot be compared, so until a request has its new prediction it
        ranks as the median of the new ones.
        """
        self._predictor = predictor
        self._recent.clear()
        self._median = _UNKNOWN
        self._since_median = 0
        self._complained = False
        self._live.table["predicted"] = 0
        _stand_in(self._live.table, self._live.count, *self._median)
        self._pending = deque(self._live.request_ids() if predictor is not None else ())

    def expect(self, request_id: str) -> None:
        """Note that a request wants a prediction; it ranks as the median until it has one."""
        self._write(self._live.row(request_id), self._median, predicted=False)
        if self._predictor is not None:
            self._pending.append(request_id)

    def recorded(self, request_id: str) -> dict[str, float | None]:
        """A request's own prediction under the names of the record; null where it has none."""
        row = self._live.table[self._live.row(request_id)]
        return {
            name: float(row[column]) if row["predicted"] else None
            for name, column in _RECORDED.items()
        }

    def work(self, limit: int = PER_STEP) -> None:
        """Predict up to `limit` pending requests."""
        made = 0
        while self._pending and made < limit:
            request_id = self._pending.popleft()
            if request_id not in self._live:
                continue
            made += 1
            row = self._live.row(request_id)
            prediction = self._predict(self._live.request(row))
            if prediction is None:
                self._counters.fallbacks += 1
                continue
            self._counters.predictions += 1
            self._recent.append(prediction)
            self._write(row, prediction, predicted=True)
            self._since_median += 1
        if self._since_median >= min(len(self._recent), _MEDIAN_EVERY) > 0:
            self._since_median = 0
            self._median = Prediction(*np.median(np.array(self._recent), axis=0).tolist())
            _stand_in(self._live.table, self._live.count, *self._median)

    def _predict(self, request: Any) -> Prediction | None:
        assert self._predictor is not None
        try:
            prediction = self._predictor.predict(prompt_of(request))
            if usable(prediction):
                return prediction
            reason = f"it said {prediction}"
        except Exception as error:  # whatever a predictor does, the request is served
            reason = f"{type(error).__name__}: {error}"
        if not self._complained:
            self._complained = True
            logger.warning("Lengthwise: no prediction, ranking as the median: %s", reason)
        return None

    def _write(self, row: int, prediction: Prediction, predicted: bool) -> None:
        request = self._live.table[row]
        request["score"] = prediction.score
        request["expected"] = prediction.expected
        request["low"] = prediction.low
        request["median"] = prediction.median
        request["high"] = prediction.high
        request["remaining"] = prediction.expected
        request["predicted"] = predicted


@compiled
def _stand_in(
    table: RequestTable,
    count: int,
    score: float,
    expected: float,
    low: float,
    median: float,
    high: float,
) -> None:
    """Give every request that has no prediction of its own the running median."""
    for i in range(count):
        request = table[i]
        if request.state == FREE or request.predicted:
            continue
        request.score = score
        request.expected = expected
        request.low = low
        request.median = median
        request.high = high
        request.remaining = expected
