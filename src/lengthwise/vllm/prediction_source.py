"""Where predictions come from: a predictor that answers at once, or a slow one in a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.predict.prediction import Prediction, Predictor, Prompt, SlowPredictor
from lengthwise.predict.worker import PredictionWorker


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
