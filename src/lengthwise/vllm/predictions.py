"""Predictions for the requests in the table: of a predictor at first, of the probe while they run.

A predictor answers at once, or is slow and asked in a worker beside the engine: no step waits for
it. Until a slow one's answer is there a stand-in predicts, where there is one; the answer then
ranks the request anew, also when it is late and the request is running.

A request is predicted once, soon after it arrives. Until then, and for good when the predictor
raises or says something unusable, the running median stands in (`policy.length_law`).

The probe's predictions become columns of the same table. A posterior over what is left is kept for
each request, beside its row. The prompt network starts it, together with what a predictor said of
the same prompt; each prediction from a decode state refines it (`lengthwise.probe.refine`), and its
mean and quantiles are what policies see. Between predictions they age by the one rule of
`policy.length_law`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.policy.length_law import (
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
    SlowPredictor,
    cut,
    usable,
)
from lengthwise.predict.worker import PredictionWorker
from lengthwise.probe.probe_folder import Probe
from lengthwise.probe.refine import pool, refine, start, summarise
from lengthwise.request import BY_PROBE, PREDICTED, RECORDED_PREDICTION, WAITING, LiveTable
from lengthwise.vllm.compat.requests import prompt_of
from lengthwise.vllm.hidden_states import (
    WORKER,
    ProbeOutput,
    ProbeWanted,
    require_layers,
    wanted_states,
)

logger = logging.getLogger("vllm.lengthwise")


class StandIn:
    """A predictor whose predictions can be ranked among those of a slow one."""

    def __init__(self, predictor: Predictor, slow: SlowPredictor) -> None:
        """`predictor` answers at once; `slow` gives the scale of its scores."""
        self.name = predictor.name
        self._predictor = predictor
        self._slow = slow

    def predict(self, prompt: Prompt) -> Prediction:
        """The prediction, with the score that the slow predictor has at its expected length."""
        prediction = self._predictor.predict(prompt)
        return prediction._replace(score=self._slow.score_at(prediction.expected))


@dataclass(frozen=True)
class Source:
    """A predictor that is ready to be used.

    Attributes:
        key: equal for sources that would predict the same.
        predictor: what makes the predictions.
        worker: where it is asked; None for one that answers at once.
        stand_in: answers at once while the worker has not; None: the running median does.
    """

    key: object
    predictor: Predictor
    worker: PredictionWorker | None = None
    stand_in: StandIn | None = None

    def close(self) -> None:
        """End the worker, if there is one. Does not wait."""
        if self.worker is not None:
            self.worker.close()


def open_source(
    spec: str,
    stand_in: str | None,
    load: Callable[[str], Predictor],
    there: Iterable[Source],
    on_restart: Callable[[], None],
) -> Source:
    """Make a source ready. A slow predictor is loaded in its worker, which takes some seconds.

    Args:
        spec: the predictor.
        stand_in: the predictor that fills in for a slow one.
        load: gives the predictor of a specification.
        there: sources that are open; one that is the same and has a worker is returned, and its
            worker goes on working.
        on_restart: called each time that the worker's process is started again.

    Raises:
        InputError: a predictor cannot be loaded, or the stand-in is slow itself.
    """
    key = (spec, _stamp(spec), stand_in, _stamp(stand_in))
    for source in there:
        if source.worker is not None and source.key == key:
            return source
    predictor = load(spec)
    if not isinstance(predictor, SlowPredictor):
        _warm_up(predictor)
        return Source(key, predictor)
    substitute = None
    if stand_in is not None:
        fast = load(stand_in)
        if isinstance(fast, SlowPredictor):
            raise InputError(
                f"stand_in {stand_in} is as slow as the predictor that it should stand in for: "
                "name one of kind lexical"
            )
        _warm_up(fast)
        substitute = StandIn(fast, predictor)
    worker = PredictionWorker(spec, on_restart=on_restart)
    worker.wait_ready()
    return Source(key, predictor, worker, substitute)


def _warm_up(predictor: Predictor) -> None:
    """Let a predictor compile what it needs before a request waits for it."""
    with contextlib.suppress(Exception):  # one that needs hints says so for each request
        predictor.predict(Prompt([0, 1, 2], {}))


def _stamp(spec: str | None) -> tuple[int, int, int] | None:
    """What changes when an artifact is written anew; None for what is no artifact."""
    try:
        status = (Path(spec or "") / "config.json").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


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
        self.stand_in()
        self.pending = deque(self._live.request_ids() if source is not None else ())
        self._open = set(self.pending)
        return True

    def stand_in(self) -> None:
        """Every live request that has no prediction ranks as the median."""
        stand_in(self._live.table, self._live.count, *self._median)

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
            self.stand_in()

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


_NEVER = -1
_NORMAL_SPAN: Final = 2.5631031310892007  # between the 10 % and 90 % quantiles of the normal law
_NO_DOUBT: Final = 0.01  # of a sigma: whoever is that sure has not been trained

Integers = NDArray[np.int64]


class Refinement:
    """Follows the live requests through the probe's predictions.

    Args:
        live: the scheduler's table.
        counters: what is counted there.
        probe: the trained probe.
        interval: steps from one prediction to the next, for the constants of the filter.
    """

    def __init__(self, live: LiveTable, counters: Counters, probe: Probe, interval: int) -> None:
        self._live = live
        self._counters = counters
        self._filter = probe.filter(interval)
        self._longest = int(probe.metadata.max_tokens)
        self._bins = len(probe.edges) - 1
        self._posteriors = np.zeros((0, self._bins))
        self._ages: Integers = np.zeros(0, np.int64)  # of the last prediction
        self._complained = False

    def forget(self, row: int) -> None:
        """A row is a new request's, or its request starts anew."""
        if row >= len(self._ages):
            more = len(self._live.table) - len(self._ages)
            self._posteriors = np.concatenate([self._posteriors, np.zeros((more, self._bins))])
            self._ages = np.concatenate([self._ages, np.full(more, _NEVER)])
        self._ages[row] = _NEVER

    def take(self, outputs: list[ProbeOutput]) -> None:
        """Take the predictions that came with a step's output. Never raises."""
        for output in outputs:
            try:
                self._take(output)
            except Exception as error:  # whatever comes, requests are served
                self._complain(f"{type(error).__name__}: {error}")

    def warm_up(self) -> None:
        """Compile what the first prediction would otherwise wait for."""
        row, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        even = np.full((1, self._bins), 1.0 / self._bins, np.float32)
        posteriors = np.zeros((1, self._bins))
        start(posteriors, row, even)
        pool(posteriors, row, np.ones(1), np.ones(1), self._filter)
        refine(posteriors, row, even, one, self._filter)
        summarise(posteriors, row, np.ones(1), self._filter, np.empty((1, 4)))

    def _take(self, output: ProbeOutput) -> None:
        self._counters.probe_partial_prompts += output.partial
        if output.failed is not None:
            self._complain(output.failed)
        if output.prompt_ids:
            rows, chosen = self._rows(output.prompt_ids, output.prompt)
            # One that has been preempted in its prefill may have a decode prediction already.
            first = self._ages[rows] == _NEVER
            rows, chosen = rows[first], chosen[first]
            start(self._posteriors, rows, output.prompt[chosen])
            self._pool(rows)
            self._write(rows, np.zeros(len(rows), np.int64))
            self._live.table["initial"][rows] = self._live.table["expected"][rows]
        if output.decode_ids:
            rows, chosen = self._rows(output.decode_ids, output.decode)
            ages = output.ages[chosen]
            later = ages > self._ages[rows]
            rows, chosen, ages = rows[later], chosen[later], ages[later]
            self._refine(rows, output.decode[chosen], ages)
            self._write(rows, ages)

    def _pool(self, rows: Integers) -> None:
        """A trained predictor has read the same prompts, and knows something, too."""
        said = self._live.table[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            sigmas = np.log(said["high"] / said["low"]) / _NORMAL_SPAN
        doubts = (said["predicted"] == PREDICTED) & (sigmas > _NO_DOUBT) & np.isfinite(sigmas)
        medians = said["median"][doubts]
        pool(self._posteriors, rows[doubts], medians, sigmas[doubts], self._filter)

    def _refine(self, rows: Integers, likely: NDArray[np.float32], ages: Integers) -> None:
        known = self._ages[rows] != _NEVER
        start(self._posteriors, rows[~known], likely[~known])
        refine(
            self._posteriors,
            rows[known],
            likely[known],
            (ages - self._ages[rows])[known],
            self._filter,
        )

    def _rows(
        self, request_ids: list[str], likely: NDArray[np.float32]
    ) -> tuple[Integers, Integers]:
        """Rows of those still alive whose prediction is usable, and their places in it."""
        usable = np.isfinite(likely).all(axis=1) & (likely.sum(axis=1) > 0.0)
        self._counters.probe_dropped += int(len(usable) - usable.sum())
        places = [
            place
            for place, request_id in enumerate(request_ids)
            if usable[place] and request_id in self._live
        ]
        rows = [self._live.row(request_ids[place]) for place in places]
        return np.array(rows, np.int64), np.array(places, np.int64)

    def _write(self, rows: Integers, ages: Integers) -> None:
        """The posteriors' mean and quantiles as predictions made at these ages."""
        if len(rows) == 0:
            return
        self._ages[rows] = ages
        self._counters.probe_predictions += len(rows)
        left = np.empty((len(rows), 4))
        table = self._live.table
        cut = table["most_tokens"][rows]
        longest = np.where(cut > 0, np.minimum(cut, self._longest), self._longest)
        most = np.maximum(longest - ages, 1).astype(np.float64)
        summarise(self._posteriors, rows, most, self._filter, left)
        for column, name in enumerate(("expected", "low", "median", "high")):
            table[name][rows] = ages + left[:, column]
        table["remaining"][rows] = left[:, 0]
        table["predicted_age"][rows] = ages
        table["predicted"][rows] = BY_PROBE

    def _complain(self, reason: str) -> None:
        self._counters.probe_failures += 1
        if not self._complained:
            self._complained = True
            logger.error("Lengthwise: a prediction of the probe is lost: %s", reason)


def open_refinement(live: LiveTable, counters: Counters, vllm_config: Any) -> Refinement | None:
    """What follows the probe that this engine was started with; None where it has none.

    Raises:
        InputError: the probe cannot be read, or the worker does not run it.
    """
    wanted = wanted_states(vllm_config.additional_config)
    if not isinstance(wanted, ProbeWanted):
        return None
    worker = vllm_config.parallel_config.worker_cls
    if worker != WORKER:
        raise InputError(
            f"additional_config names a probe, which the worker {worker} does not run: "
            f"add --worker-cls {WORKER}"
        )
    probe = Probe.load(Path(wanted.folder))
    require_layers(probe, wanted)
    refinement = Refinement(live, counters, probe, wanted.interval)
    refinement.warm_up()
    return refinement
