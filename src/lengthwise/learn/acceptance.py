"""Whether a new predictor orders answers better than the present one, and how sure that is.

Both score the same held-out answers, the newest ones, that neither was trained on. The answers are
drawn with replacement again and again, and the difference of the two taus is taken of each draw (a
paired bootstrap: Efron and Tibshirani, 1993, chapter 16). The new one is better if that difference
is above 0 in all but the lowest 2.5 % of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.intervals import draws
from lengthwise.learn.learner_state import Promise
from lengthwise.learn.training_rows import features_of
from lengthwise.predict.kendall import kendall_tau, tau_with_interval
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.load import load_predictor
from lengthwise.workload.length_log import Answer

_RESAMPLES: Final = 400
_LOWEST: Final = 0.025

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What held-out answers say of two predictors. A tau that is undefined counts as 0."""

    rows: int
    tau: float  # of the new predictor
    tau_low: float  # ends of its 95 % bootstrap interval
    tau_high: float
    present_tau: float
    difference_low: float  # what the difference is above in 97.5 % of the draws

    @property
    def is_better(self) -> bool:
        """Whether the new predictor is to be taken."""
        return self.difference_low > 0.0


def compare(
    lengths: NDArray[np.int64], new: Scores, present: Scores, seed: int = 0, tried: int = 1
) -> Comparison:
    """Compare two predictors' scores of the same answers.

    Args:
        lengths: shape (n,), whole lengths in tokens.
        new: shape (n,), the new predictor's scores.
        present: shape (n,), the present one's; all equal where there is none.
        seed: of the draws.
        tried: how many new predictors are compared on these answers to take the best one; each
            must then be better in so many times more of the draws (Bonferroni).
    """
    differences = [
        tau_or_0(lengths[rows], new[rows]) - tau_or_0(lengths[rows], present[rows])
        for rows in draws(lengths.size, _RESAMPLES, seed)
    ]
    tau, low, high = tau_or_0_with_interval(lengths, new, seed)
    return Comparison(
        rows=lengths.size,
        tau=tau,
        tau_low=low,
        tau_high=high,
        present_tau=tau_or_0(lengths, present),
        difference_low=float(np.quantile(differences, _LOWEST / tried)),
    )


def tau_or_0(lengths: NDArray[np.int64], scores: Scores) -> float:
    """Kendall's tau-b; 0 where it is undefined, as all requests then look alike."""
    return kendall_tau(lengths, scores) or 0.0


def tau_or_0_with_interval(
    lengths: NDArray[np.int64], scores: Scores, seed: int = 0
) -> tuple[float, float, float]:
    """Tau and the ends of its 95 % bootstrap interval; all 0 where it is undefined."""
    tau, low, high = tau_with_interval(lengths, scores, seed)
    if tau is None or low is None or high is None:
        return 0.0, 0.0, 0.0
    return tau, low, high


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
