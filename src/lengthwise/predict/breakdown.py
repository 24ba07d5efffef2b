"""Where a predictor is good and where it is not: by task, by length, and by its own estimate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.kendall import tau_with_interval
from lengthwise.predict.prediction import Prediction

OTHER: Final = "other"  #: tasks that are too rare to be told apart

_MOST_TASKS: Final = 20
_LEAST_ROWS: Final = 30  #: of a task: below, tau says nothing
_PARTS: Final = 10
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

#: Words that stand before the verb that says what is asked for: "Could you please write …".
_COURTESY: Final = """
a also an and are be can could do following for from given good hello help hey hi i if in is it its
kindly let like love me must my need now of on please should sure tell the then there this to us
using want we will with would you your i'd i'm i've let's you're you've
"""
_COURTEOUS: Final = frozenset(_COURTESY.split())

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Some of the rows."""

    name: str
    rows: int
    mean_length: float  #: tokens
    mean_expected: float  #: tokens
    tau: float | None  #: Kendall tau-b within these rows
    tau_low: float | None  #: ends of its 95 % bootstrap interval
    tau_high: float | None
    mae: float  #: of the expected length, tokens
    coverage_80: float  #: share of lengths from the 10 % to the 90 % quantile
    below_low: float  #: share below the 10 % quantile: 0.1 if calibrated
    below_median: float  #: share below the median, those equal to it counted half: 0.5
    above_high: float  #: share above the 90 % quantile: 0.1


def by_task(tasks: Sequence[str], lengths: Floats, predictions: Floats, seed: int) -> list[Part]:
    """A part for each of the most common tasks, the rest under `OTHER`; largest first.

    Args:
        tasks: of n rows.
        lengths: shape (n,), tokens.
        predictions: shape (n, 5), as in `Prediction`.
        seed: of the intervals.
    """
    common = [task for task, rows in Counter(tasks).most_common(_MOST_TASKS) if rows >= _LEAST_ROWS]
    names = np.array([task if task in common else OTHER for task in tasks])
    return [
        _part(name, lengths[names == name], predictions[names == name], seed)
        for name in [*common, OTHER]
        if (names == name).any()
    ]


def by_length(lengths: Floats, predictions: Floats, seed: int) -> list[Part]:
    """A part for each tenth of the rows, from the shortest answers to the longest.

    Within a tenth lengths differ little, so its tau is far below that of all.
    """
    return _tenths(lengths, lengths, predictions, seed)


def by_estimate(lengths: Floats, predictions: Floats, seed: int) -> list[Part]:
    """A part for each tenth of the rows, by the expected length: is what is promised true?"""
    expected = predictions[:, Prediction._fields.index("expected")]
    return _tenths(expected, lengths, predictions, seed)


def root_verb(prompt: str) -> str:
    """What a prompt asks for, in a word: its first one that is no courtesy, in lower case.

    "Could you please write a poem?" is to write, "What is a poem?" to say what. Prompts of other
    languages are told apart by their first words too.
    """
    words = [word.lower().replace("’", "'") for word in _WORD.findall(prompt[:400])]
    return next((word for word in words if word not in _COURTEOUS), OTHER)


def _tenths(keys: Floats, lengths: Floats, predictions: Floats, seed: int) -> list[Part]:
    parts = np.array_split(np.argsort(keys, kind="stable"), min(_PARTS, max(1, keys.size)))
    return [
        _part(
            f"{keys[rows].min():.0f}–{keys[rows].max():.0f}", lengths[rows], predictions[rows], seed
        )
        for rows in parts
        if rows.size
    ]


def _part(name: str, lengths: Floats, predictions: Floats, seed: int) -> Part:
    score, expected, low, median, high = predictions.T
    tau, tau_low, tau_high = tau_with_interval(lengths, score, seed)
    return Part(
        name=name,
        rows=lengths.size,
        mean_length=float(lengths.mean()),
        mean_expected=float(expected.mean()),
        tau=tau,
        tau_low=tau_low,
        tau_high=tau_high,
        mae=float(np.abs(expected - lengths).mean()),
        coverage_80=float(((low <= lengths) & (lengths <= high)).mean()),
        below_low=float((lengths < low).mean()),
        below_median=float((lengths < median).mean() + (lengths == median).mean() / 2),
        above_high=float((lengths > high).mean()),
    )
