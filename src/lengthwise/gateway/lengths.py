"""Predictions for those that wait, and what answers teach.

Prompts are rendered and predicted in a thread, in the order in which they came. A request that goes
before its turn there is not predicted any more, unless its answer is to be learnt from.

For that its body has to be kept after it was let go elsewhere, and the thread may be far behind.
What is kept so is bounded; answers beyond that are lost to the log, and counted.

Kept are bodies, and never what was read of them, which may be twenty times as large: the thread
reads them once more.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from lengthwise.counters import Counters
from lengthwise.errors import LengthwiseError, one_line
from lengthwise.gateway.bodies import Asked, Usage, read_body
from lengthwise.gateway.ranked_queue import Entry, Queue
from lengthwise.hints.estimate import PromptEncoder, PromptPredictor
from lengthwise.policy.length_law import MEDIAN_EVERY, RECENT
from lengthwise.predict.prediction import Prediction, Prompt, usable
from lengthwise.request import RECORDED_PREDICTION
from lengthwise.telemetry.length_log_writer import LengthLog
from lengthwise.telemetry.rolling_tau import RollingTau
from lengthwise.workload.length_log import FULL

logger = logging.getLogger("lengthwise.gateway")

MOST_BEHIND: Final = 16_000_000  #: bytes of bodies that are kept only to be learnt from
_PART: Final = 16  #: requests that are predicted before what is known is told
_ENDED_BY_ITSELF: Final = ("stop", "tool_calls", "function_call")


class Source(NamedTuple):
    """Where predictions and features come from."""

    predictor: PromptPredictor | None
    encoder: PromptEncoder | None  #: what renders prompts; None where nobody needs their tokens
    log: LengthLog | None  #: where answers are written
    name: str | None  #: the predictor's, as the log and the learner know it


@dataclass(eq=False)
class Measured:
    """A request from its arrival until its answer was learnt from.

    Attributes:
        entry: as the queue knows it.
        asked: what it asks for.
        body: with its prompts, as long as they may have to be predicted; b"" where there are none.
        arrival_s: by the monotonic clock.
        arrival_index: its place among all.
        went_s: when it went, by the same clock; None while it waits.
        begun: whether its answer has: it cannot wait again.
        prompt: its tokens and hints, once rendered.
        log: where its answer is written: the log that knows what these tokens stand for.
        prediction: of its whole answer.
        by: who predicted it.
        cut_to: its prediction as it ranks it.
        usage: what its answer said of itself.
        looked_at: whether it is known what its prediction is, or that it has none.
        behind: bytes of its body that are kept only to be learnt from.
    """

    entry: Entry
    asked: Asked
    body: bytes
    arrival_s: float
    arrival_index: int
    went_s: float | None = None
    begun: bool = False
    prompt: Prompt | None = None
    log: LengthLog | None = None
    prediction: Prediction | None = None
    by: str | None = None
    cut_to: Prediction | None = None
    usage: Usage | None = None
    looked_at: bool = False
    behind: int = 0


class Lengths:
    """Predicts requests and takes in how long their answers were.

    Args:
        queue: what is ranked.
        counters: the scheduler's.
    """

    def __init__(self, queue: Queue, counters: Counters) -> None:
        self._queue = queue
        self._counters = counters
        self._source = Source(None, None, None, None)
        self._thread = ThreadPoolExecutor(1, "lengthwise-predict")
        self._pending: OrderedDict[Measured, None] = OrderedDict()
        self._behind = 0  # bytes of bodies that are kept only to be learnt from
        self._live: dict[Entry, Measured] = {}
        self._recent: deque[Prediction] = deque(maxlen=RECENT)
        self._since_median = 0
        self._worker: asyncio.Task[None] | None = None
        self._complained = False
        self.tau = RollingTau(counters)

    def use(self, source: Source, tau_floor: float | None) -> None:
        """Predict with another source from now on, those that wait as well."""
        before, self._source = self._source, source
        self.tau.set_floor(tau_floor)
        self._judge()
        if source.predictor is before.predictor:
            return
        self.tau.restart(self._queue.arrivals)
        self._recent.clear()
        self._since_median = 0
        self._complained = False
        self._queue.forget_predictions()
        self._look_again(
            [each for each in self._live.values() if self._queue.is_waiting(each.entry)]
        )

    def arrived(self, measured: Measured) -> None:
        """A request was queued."""
        self._live[measured.entry] = measured
        if self._source.encoder is not None and measured.body:
            self._pending[measured] = None
            self._work()
        elif self._source.predictor is not None:
            measured.looked_at = True
            self._counters.fallbacks += 1

    def went(self, measured: Measured, now_s: float) -> None:
        """A request has its turn."""
        measured.went_s = now_s

    def came_back(self, measured: Measured) -> None:
        """A request that had its turn was not taken, and waits again."""
        measured.went_s = None
        # Its turn may have come before it was predicted, or settings have changed since.
        if not measured.looked_at or measured.by != self._source.name:
            self._look_again([measured])

    def begun(self, measured: Measured) -> None:
        """The answer to a request has begun: its body is kept only to be learnt from."""
        measured.begun = True
        learns = self._source.log is not None and measured.asked.single
        size = len(measured.body)
        if measured.looked_at or not learns or self._behind + size > MOST_BEHIND:
            self._forget_body(measured)
        else:
            measured.behind = size
            self._behind += size

    def _look_again(self, those: Sequence[Measured]) -> None:
        for each in those:
            if each.body:
                each.prediction = each.cut_to = each.by = None
                each.looked_at = False
                self._pending[each] = None
        self._work()

    def _forget_body(self, measured: Measured) -> None:
        """It is needed no longer: neither for a ranking nor to be learnt from."""
        measured.body = b""
        self._pending.pop(measured, None)
        self._behind -= measured.behind
        measured.behind = 0

    def ended(self, measured: Measured, usage: Usage | None) -> None:
        """A request ended; without usage nothing is learnt from it. The queue still has it."""
        del self._live[measured.entry]
        if not measured.looked_at and self._source.predictor is not None:
            self._counters.unpredicted += 1
        measured.usage = usage if measured.asked.single else None
        whole = None
        if measured.usage is not None and measured.usage.finished in _ENDED_BY_ITSELF:
            # As the scheduler asks: among answers that a caller's limit has room for, and not
            # among those that happened to fit.
            most, said = measured.asked.most_tokens, measured.prediction
            if said is None or not most or most >= said.high:
                whole = measured.usage.output_tokens
        score = measured.cut_to.score if measured.cut_to is not None else None
        self.tau.ended(measured.arrival_index, score, whole)
        self._judge()
        if measured.prompt is not None:
            self._log(measured)
        elif measured.usage is None:
            self._forget_body(measured)
        elif self._source.log is not None and not measured.body and not measured.looked_at:
            self._counters.log_lost += 1

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(cancel_futures=True)

    def _judge(self) -> None:
        self._queue.doubtful = self.tau.below_floor

    # Predicting -------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._predict_pending())

    async def _predict_pending(self) -> None:
        """Ends when nothing is pending; `_work` starts it again."""
        loop = asyncio.get_running_loop()
        while self._pending:
            source = self._source
            part: list[Measured] = []
            while self._pending and len(part) < _PART:
                measured, _ = self._pending.popitem(last=False)
                if source.log is not None or self._queue.is_waiting(measured.entry):
                    part.append(measured)
                elif measured.begun:
                    self._forget_body(measured)
            if not part or source.encoder is None:
                continue
            bodies = [measured.body for measured in part]
            answers = await loop.run_in_executor(self._thread, _look_at_all, source, bodies)
            del bodies
            for measured, (prompt, prediction) in zip(part, answers, strict=True):
                self._note(source, measured, prompt, prediction)
            if self._since_median >= min(len(self._recent), MEDIAN_EVERY) > 0:
                self._since_median = 0
                median = np.median(np.array(self._recent), axis=0).tolist()
                self._queue.stand_in(Prediction(*median))

    def _note(
        self,
        source: Source,
        measured: Measured,
        prompt: Prompt | None,
        prediction: Prediction | LengthwiseError | None,
    ) -> None:
        measured.prompt, measured.log, measured.looked_at = prompt, source.log, True
        if measured.begun:
            self._forget_body(measured)
        if source.predictor is not None:
            if isinstance(prediction, Prediction) and usable(prediction):
                measured.prediction, measured.by = prediction, source.name
            else:
                self._counters.fallbacks += 1
                self._complain(prediction)
        if measured.entry not in self._live:
            self._log(measured)
        elif source.predictor is self._source.predictor:
            self._rank(source.predictor, measured)

    def _rank(self, predictor: PromptPredictor | None, measured: Measured) -> None:
        """Rank a request by its prediction, if there is one."""
        said, prompt = measured.prediction, measured.prompt
        if predictor is None or said is None or prompt is None:
            return
        self._counters.predictions += 1
        self._recent.append(said)
        self._since_median += 1
        measured.cut_to = predictor.cut(said, measured.asked.most_tokens)
        self._queue.predict(measured.entry, measured.cut_to, len(prompt.token_ids))

    def _complain(self, prediction: object) -> None:
        """Say once for each predictor why it is not used; messages of ours quote no prompt."""
        if not self._complained:
            self._complained = True
            ours = isinstance(prediction, LengthwiseError)
            reason = one_line(prediction) if ours else "it said no lengths"
            logger.warning("no prediction, ranking as the median: %s", reason)

    # Learning ---------------------------------------------------------------------------------

    def _log(self, measured: Measured) -> None:
        log, usage, prompt = measured.log, measured.usage, measured.prompt
        if self._source.log is None or log is None:
            return  # nobody asks for it any more, or nobody did yet
        if usage is None or prompt is None or measured.went_s is None:
            return
        said: Sequence[float | None] = measured.prediction or (None,) * len(Prediction._fields)
        log.answer(
            prompt,
            measured.arrival_s,
            {
                "queue_s": measured.went_s - measured.arrival_s,
                **dict(zip(RECORDED_PREDICTION, said, strict=True)),
                "output_tokens": usage.output_tokens,
                "prompt_tokens": usage.prompt_tokens or len(prompt.token_ids),
                "cached_tokens": None,
                "finished": FULL if usage.finished in _ENDED_BY_ITSELF else usage.finished,
                "predictor": measured.by,
            },
        )


def _look_at_all(
    source: Source, bodies: Sequence[bytes]
) -> list[tuple[Prompt | None, Prediction | LengthwiseError | None]]:
    return [_look_at(source, body) for body in bodies]


def _look_at(
    source: Source, body: bytes
) -> tuple[Prompt | None, Prediction | LengthwiseError | None]:
    """A request's prompt, and the prediction of its answer: the longest, where it has several."""
    assert source.encoder is not None
    questions = read_body(body).questions
    try:
        prompts = [
            Prompt(array("i", ids), question.hints)
            for ids, question in zip(source.encoder.encode(questions), questions, strict=True)
        ]
    except LengthwiseError as error:
        return None, error
    except Exception as error:  # tokenizers and templates are others' code
        return None, LengthwiseError(type(error).__name__)
    if source.predictor is None:
        return prompts[0], None
    try:
        predictions = source.predictor.predict_whole(prompts)
        # It ends with its longest answer.
        return prompts[0], max(predictions, key=lambda each: each.expected)
    except LengthwiseError as error:
        return prompts[0], error
    except Exception as error:  # whatever a predictor does, the request is served
        return prompts[0], LengthwiseError(type(error).__name__)
