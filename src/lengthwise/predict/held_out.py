"""Doubt: what rows that a model was not trained on say of it.

Split-conformal prediction (Vovk, Gammerman and Shafer, 2005): whatever the model, the quantiles of
held-out answers at a score hold for new answers too, as long as these come from the same source.
For that no row may be calibrated by a model that was trained on it: rows are dealt into folds, and
each is scored by a model of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.artifact import HeldOut, Training
from lengthwise.predict.calibration import (
    calibrate_many,
    fit_calibration,
    fit_factors,
    quantile_lengths,
)
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.losses import all_lengths
from lengthwise.workload.dataset import Dataset

FOLDS: Final = 5
ENOUGH_ROWS: Final = 4_000  #: held-out rows: further folds are not fitted

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def cross_fit(
    rows: Rows, seed: int, fit: Callable[[Rows, Rows, int], Floats], report: Callable[[float], None]
) -> Floats:
    """What models say of rows that they were not trained on.

    Args:
        rows: shape (count,), the rows of the file that they are from: answers of one conversation
            are in the same fold, as what was said in it is in the prompts of all.
        seed: of the folds.
        fit: from rows to train on, rows to score and a seed to outputs, shape (rows, outputs).
        report: called with the part that is done, 0 to 1.

    Returns:
        shape (count, outputs); NaN where no fold scored the row, see `ENOUGH_ROWS`.
    """
    count = rows.size
    folds = _folds(rows, seed)
    used = min(FOLDS, -(-ENOUGH_ROWS // folds[0].size))
    scored = []
    for index in range(used):
        report(index / used)
        rest = np.sort(np.concatenate([fold for fold in folds if fold is not folds[index]]))
        scored.append(fit(rest, folds[index], seed + 1 + index))
    outputs = np.full((count, scored[0].shape[1]), np.nan)
    for fold, found in zip(folds, scored, strict=False):
        outputs[fold] = found
    return outputs


def _folds(rows: Rows, seed: int) -> list[Rows]:
    """The places of the rows, divided at random, those of one row of the file together."""
    apart, places = np.unique(rows, return_inverse=True)
    parts = np.array_split(np.random.default_rng(seed).permutation(apart.size), FOLDS)
    if apart.size == rows.size:
        return parts
    return [np.flatnonzero(np.isin(places, part)) for part in parts]


def calibrate_held_out(dataset: Dataset, scores: Floats) -> tuple[Floats, HeldOut]:
    """A calibration table, see `fit_calibration`, and how it does on rows that it has not seen.

    Args:
        dataset: the training rows. All answers count where a prompt has several.
        scores: shape (rows,), of models that had not seen the row; NaN where there is none.
    """
    return _calibrate(
        dataset,
        scores[:, np.newaxis],
        scores,
        lambda outputs, lengths: fit_calibration(np.ravel(outputs), lengths),
        lambda outputs, table: calibrate_many(np.ravel(outputs), table),
    )


def calibrate_quantiles(dataset: Dataset, outputs: Floats) -> tuple[tuple[Floats, Floats], HeldOut]:
    """The same for a model that gives quantiles itself: conformalised quantile regression.

    Args:
        dataset: the training rows.
        outputs: shape (rows, 3), logarithms of the quantiles, NaN where there are none.

    Returns:
        a calibration table by the median, and factors, see `fit_factors`.
    """

    def fit(outputs: Floats, lengths: Floats) -> tuple[Floats, Floats]:
        return fit_calibration(outputs[:, 1].copy(), lengths), fit_factors(outputs, lengths)

    def apply(outputs: Floats, fitted: tuple[Floats, Floats]) -> Floats:
        expected = calibrate_many(outputs[:, 1].copy(), fitted[0])[:, :1]
        return np.hstack([expected, quantile_lengths(outputs, fitted[1])])

    return _calibrate(dataset, outputs, outputs[:, 1], fit, apply)


def _calibrate(
    dataset: Dataset,
    outputs: Floats,
    scores: Floats,
    fit: Callable[[Floats, Floats], Any],
    apply: Callable[[Floats, Any], Floats],
) -> tuple[Any, HeldOut]:
    """Fit to all held-out rows; measure on each half what was fitted to the other."""
    (rows,) = np.nonzero(np.isfinite(scores))
    truth = dataset.lengths[rows].astype(np.float64)
    predicted = np.empty((rows.size, 4))
    for half in (0, 1):
        places, lengths = all_lengths(dataset, rows[half::2])
        predicted[1 - half :: 2] = apply(
            outputs[rows[1 - half :: 2]], fit(outputs[rows[half::2]][places], lengths)
        )
    expected, low, _, high = predicted.T
    places, lengths = all_lengths(dataset, rows)
    return fit(outputs[rows][places], lengths), HeldOut(
        rows=rows.size,
        tau=kendall_tau(truth, scores[rows]),
        mae=float(np.abs(expected - truth).mean()),
        coverage_80=float(((low <= truth) & (truth <= high)).mean()),
    )


def training_record(dataset: Dataset, seed: int, started: float) -> Training:
    """What config.json says of the training.

    Args:
        dataset: what was learnt from.
        seed: as asked for.
        started: the monotonic clock when the work began.
    """
    rows = dataset.lengths.size
    return Training(
        dataset=dataset.name,
        selection=dataset.selection,
        rows=rows,
        rejected_rows=len(dataset.rejected),
        answers=rows if dataset.samples is None else sum(map(len, dataset.samples)),
        seed=seed,
        seconds=round(time.monotonic() - started, 3),
        trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
