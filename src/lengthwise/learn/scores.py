"""What predictors say of logged answers, and what they promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.learn.learner_state import Promise
from lengthwise.learn.training_rows import features_of
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.load import load_predictor
from lengthwise.workload.length_log import Answer

Scores = NDArray[np.float64]


def scores_of(predictor: str, answers: Sequence[Answer]) -> Scores:
    """The scores of a predictor as the settings name it, shape (n,).

    An artifact of hashed features is asked now, about all answers. What others said is known of
    those answers that they predicted when these were served.
    """
    artifact = _artifact(predictor)
    return logged_scores(predictor, answers) if artifact is None else scores_now(artifact, answers)


def scores_now(predictor: LexicalPredictor, answers: Sequence[Answer]) -> Scores:
    """The scores that a predictor gives to the answers' hashed features, shape (n,)."""
    return predictor.score_rows(features_of(answers))


def logged_scores(predictor: str, answers: Sequence[Answer]) -> Scores:
    """A predictor's scores as they were when the answers finished, shape (n,).

    Where it had none the median stands in, as in the scheduler.
    """
    name = Path(predictor).name
    said = [
        answer.values["score"] if answer.values["predictor"] == name else None for answer in answers
    ]
    scores = np.array([np.nan if score is None else score for score in said], dtype=np.float64)
    known = np.isfinite(scores)
    return np.where(known, scores, np.median(scores[known]) if known.any() else 0.0)


def own_promise(predictor: str) -> Promise | None:
    """What an artifact says of itself; None where there is none."""
    artifact = _artifact(predictor)
    tau = None if artifact is None else artifact.metadata.held_out.tau
    return None if tau is None else (tau, tau, tau)


def _artifact(predictor: str) -> LexicalPredictor | None:
    """The predictor of words that the settings name; None if it is none, gone or damaged."""
    if not Path(predictor).is_dir():
        return None
    try:
        loaded = load_predictor(predictor)
    except InputError:
        return None
    return loaded if isinstance(loaded, LexicalPredictor) else None
