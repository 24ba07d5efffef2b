"""Predictions for the requests in the table, and what happens when there is none.

A request is predicted once, soon after it arrives. Until then, and for good when the predictor
raises or says something unusable, the running median stands in (`policy.stand_in`).

A slow predictor is asked in a worker beside the engine, and no step waits for it. Until its answer
is there a stand-in predicts, where there is one; the answer then ranks the request anew, also when
it is late and the request is running.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any, Final

import numpy as np

from lengthwise.counters import Counters
from lengthwise.errors import one_line
from lengthwise.policy.stand_in import (
    MEDIAN_EVERY,
    PER_STEP,
    READ,
    READ_PER_STEP,
    RECENT,
    UNKNOWN,
    stand_in,
)
from lengthwise.predict.prediction import (
    Prediction,
    PredictionError,
    Predictor,
    Prompt,
    cut,
    usable,
)
from lengthwise.request import BY_PROBE, RECORDED_PREDICTION, WAITING, LiveTable
from lengthwise.vllm.compat.requests import prompt_of
from lengthwise.vllm.prediction_source import Source

logger = logging.getLogger("vllm.lengthwise")

_UNKNOWN: Final = Prediction(*UNKNOWN)


class Predictions:
    """Fills the prediction columns of a live table.

    Attributes:
        pending: requests that are to be predicted, or to be passed to the worker.
        asks_worker: a worker is asked, whose answers are to be taken up.
    """

    def __init__(self, live: LiveTable, counters: Counters) -> None:
        self._live = live
        self._counters = counters
        self._source: Source | None = None
        self.pending: deque[str] = deque()
        self.asks_worker = False
        self._open: set[str] = set()  # live, and neither predicted nor given up
        self._recent: deque[Prediction] = deque(maxlen=RECENT)
        # From the prompt, of each row of the table, as it was said of the whole answer; NaN: none.
        self._made = np.full((len(live.table), len(RECORDED_PREDICTION)), np.nan)
        self._median = _UNKNOWN
        self._since_median = 0
        self._complained = False
        stand_in(live.table, 0, *UNKNOWN)  # compiles

    def use(self, source: Source | None) -> bool:
        """Change the predictor and predict every live request anew.

        Scores of two predictors cannot be compared, so until a request has its new prediction it
        ranks as the median of the new ones.

        Returns:
            Whether it is another one than before.
        """
        if source is self._source:
            return False
        self._source = source
        self.asks_worker = source is not None and source.worker is not None
        self._recent.clear()
        self._made.fill(np.nan)
        self._median = _UNKNOWN
        self._since_median = 0
        self._complained = False
        self._live.table["predicted"] = 0
        stand_in(self._live.table, self._live.count, *self._median)
        self.pending = deque(self._live.request_ids() if source is not None else ())
        self._open = set(self.pending)
        return True

    def expect(self, request_id: str) -> None:
        """Note that a request wants a prediction; it ranks as the median until it has one.

        A session's turn wants one of its own: what was said of the turn before is forgotten.
        """
        row = self._live.row(request_id)
        if row < len(self._made):
            self._made[row] = np.nan
        self._write(row, self._median, predicted=False)
        if self._source is not None:
            self.pending.append(request_id)
            self._open.add(request_id)

    def forget(self, request_id: str) -> dict[str, float | None]:
        """What was predicted from a prompt, whose request has ended.

        Returns:
            The prediction under the names of the record; null where there was none.
        """
        if request_id in self._open:
            self._open.remove(request_id)
            self._counters.unpredicted += 1
        row = self._live.row(request_id)
        if row >= len(self._made) or math.isnan(self._made[row, 0]):
            return dict.fromkeys(RECORDED_PREDICTION)
        said = self._made[row].tolist()
        self._made[row] = np.nan
        return dict(zip(RECORDED_PREDICTION, said, strict=True))

    def work(self, limit: int = PER_STEP) -> None:
        """Predict up to `limit` pending requests, fewer where their prompts are long.

        As many answers of the worker are taken up.
        """
        source = self._source
        if source is None:
            return
        made = read = 0
        while self.pending and made < limit and read < READ_PER_STEP:
            request_id = self.pending.popleft()
            if request_id not in self._live:
                continue
            made += 1
            row = self._live.row(request_id)
            request = self._live.request(row)
            read += min(request.num_prompt_tokens, READ)
            if source.worker is None:
                self._note(row, self._predict(source.predictor, request))
            else:
                self._ask_worker(source, request_id, row)
        if source.worker is not None:
            for request_id, prediction in source.worker.answers(limit):
                self._take_answer(request_id, prediction)
        if self._since_median >= min(len(self._recent), MEDIAN_EVERY) > 0:
            self._since_median = 0
            self._median = Prediction(*np.median(np.array(self._recent), axis=0).tolist())
            stand_in(self._live.table, self._live.count, *self._median)

    def _ask_worker(self, source: Source, request_id: str, row: int) -> None:
        """Queue a request for the worker, and let the stand-in predict it at once."""
        assert source.worker is not None
        request = self._live.request(row)
        try:
            accepted = source.worker.submit(request_id, self._prompt(request))
        except PredictionError as error:
            self._complain(one_line(error))
            accepted = False
        if source.stand_in is not None:
            prediction = self._predict(source.stand_in, request)
            if prediction is not None:
                self._counters.stand_ins += 1
                self._write(row, prediction, predicted=True)
        if not accepted:
            self._give_up(row)

    def _take_answer(self, request_id: str, prediction: Prediction | None) -> None:
        if request_id not in self._live:
            self._counters.late_predictions += prediction is not None
            return
        row = self._live.row(request_id)
        if prediction is None:
            self._give_up(row)
            return
        self._counters.late_predictions += int(self._live.table[row]["state"] != WAITING)
        self._note(row, self._checked(prediction))

    def _give_up(self, row: int) -> None:
        """The worker will not answer: what stands in for its answer stays."""
        self._open.discard(self._live.request(row).request_id)
        self._counters.shed_predictions += 1
        self._counters.fallbacks += int(not self._live.table[row]["predicted"])

    def _note(self, row: int, prediction: Prediction | None) -> None:
        """Rank a request by its prediction, if there is one."""
        self._open.discard(self._live.request(row).request_id)
        if prediction is None:
            self._counters.fallbacks += 1
            return
        self._counters.predictions += 1
        self._recent.append(prediction)
        self._write(row, prediction, predicted=True)
        self._since_median += 1

    def _prompt(self, request: Any) -> Prompt:
        """Of a request that has its row."""
        row = self._live.row(request.request_id)
        return prompt_of(request, int(self._live.table["most_tokens"][row]))

    def _predict(self, predictor: Predictor, request: Any) -> Prediction | None:
        try:
            return self._checked(predictor.predict(self._prompt(request)))
        except Exception as error:  # whatever a predictor does, the request is served
            self._complain(f"{type(error).__name__}: {error}")
        return None

    def _checked(self, prediction: Prediction) -> Prediction | None:
        if usable(prediction):
            return prediction
        self._complain(f"it said {prediction}")
        return None

    def _complain(self, reason: str) -> None:
        """Say once for each predictor why it is not used."""
        if not self._complained:
            self._complained = True
            logger.warning("Lengthwise: no prediction, ranking as the median: %s", reason)

    def _remember(self, row: int, prediction: Prediction) -> None:
        if row >= len(self._made):
            larger = np.full((len(self._live.table), len(RECORDED_PREDICTION)), np.nan)
            larger[: len(self._made)] = self._made
            self._made = larger
        self._made[row] = prediction

    def _write(self, row: int, prediction: Prediction, predicted: bool) -> None:
        request = self._live.table[row]
        if predicted:
            self._remember(row, prediction)
            if request["predicted"] == BY_PROBE:
                return  # it knows more, and was first
            predictor = self._source.predictor if self._source is not None else None
            prediction = cut(prediction, int(request["most_tokens"]), predictor)
        request["score"] = prediction.score
        request["expected"] = prediction.expected
        request["low"] = prediction.low
        request["median"] = prediction.median
        request["high"] = prediction.high
        request["initial"] = prediction.expected
        request["predicted_age"] = 0
        request["remaining"] = prediction.expected
        request["predicted"] = predicted
