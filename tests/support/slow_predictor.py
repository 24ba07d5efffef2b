"""A predictor that is asked in a process of its own."""

from __future__ import annotations

from lengthwise.predict.prediction import Prediction, Prompt
from tests.support.checked_engine import CheckedEngine
from tests.support.waiting import wait_until


class Slow:
    """What the engine's process sees of a slow predictor; the worker loads the real one.

    In its scores an expected token counts ten, so that scores of others stand out.
    """

    name = "slow"

    def predict(self, prompt: Prompt) -> Prediction:
        raise AssertionError("a slow predictor was asked within a step")

    def predict_many(self, prompts: list[Prompt]) -> list[Prediction]:
        raise AssertionError("a slow predictor was asked within a step")

    def score_at(self, expected: float) -> float:
        return 10 * expected


def worker_pid(engine: CheckedEngine) -> int:
    return int(wait_until(lambda: engine.scheduler._active.source.worker.pid))
