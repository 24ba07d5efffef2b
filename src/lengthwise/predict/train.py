"""From a table of prompts and answer lengths to a lexical predictor."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.predict.artifact import HeldOut, LexicalParameters, Metadata, Training
from lengthwise.predict.calibration import calibrate_many, fit_calibration
from lengthwise.predict.extract import extract_features, template_of, vocabulary_of
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.linear import fit_linear, score_rows
from lengthwise.predict.ranking import kendall_tau
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

LEAST_ROWS: Final = 20  #: fewer prompts teach nothing

_FOLDS: Final = 5  #: of cross-fitting
_CALIBRATION_ROWS: Final = 10_000  #: enough held-out rows: further folds are not fitted
Progress = Callable[[str, float], None]  #: what is being done, and the part done of it all, 0 to 1


def train(
    dataset: Dataset,
    tokenizer: PromptTokenizer,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> LexicalPredictor:
    """Train a lexical predictor.

    The final model is trained on all rows. Calibration and the metrics in the metadata come from
    cross-fitting: rows are dealt into five folds, and each is scored by a model trained on the
    other four, so that no row is calibrated by a model that saw it. With many rows, folds beyond
    the first 10,000 rows are not fitted.

    Args:
        dataset: prompts and lengths. Where a prompt has several answers, the geometric mean of
            their lengths is learnt, and all of them are calibrated on.
        tokenizer: that of the model to be served.
        seed: of folds, lists and tie-breaks. The same seed and rows give the same predictor.
        progress: called now and then.

    Raises:
        InputError: too few rows, or nothing to learn in them.
    """
    started = time.monotonic()
    report = progress or _silent
    rows = len(dataset.prompts)
    if rows < LEAST_ROWS:
        raise InputError(
            f"{dataset.name}: {rows} usable rows, training needs at least {LEAST_ROWS}"
        )
    targets = typical_lengths(dataset)
    if targets.min() == targets.max():
        raise InputError(
            f"{dataset.name}: all answers have {targets[0]:g} tokens, there is nothing to learn; "
            "check the length column"
        )
    vocabulary = vocabulary_of(tokenizer)
    template = template_of(tokenizer)
    features = extract_features(
        dataset.prompts, tokenizer, vocabulary, template, lambda part: report("prompts", part / 3)
    )
    held_out = np.full(rows, np.nan)
    order = np.random.default_rng(seed).permutation(rows)
    folds = np.array_split(order, _FOLDS)
    used = min(_FOLDS, -(-_CALIBRATION_ROWS // folds[0].size))
    for index in range(used):
        report("cross-fitting", (1 + 2 * index / (used + 1)) / 3)
        rest = np.sort(np.concatenate([fold for fold in folds if fold is not folds[index]]))
        fold_model = fit_linear(features, rest, targets[rest], seed + 1 + index)
        held_out[folds[index]] = score_rows(features, folds[index], fold_model.table())
    report("training", (1 + 2 * used / (used + 1)) / 3)
    model = fit_linear(features, np.arange(rows), targets, seed)
    calibration, metrics = _calibrate(dataset, held_out)
    answers = rows if dataset.samples is None else sum(map(len, dataset.samples))
    report("training", 1.0)
    return LexicalPredictor(
        Metadata(
            model=dataset.model,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            training=Training(
                dataset=dataset.name,
                selection=dataset.selection,
                rows=rows,
                rejected_rows=len(dataset.rejected),
                answers=answers,
                seed=seed,
                seconds=round(time.monotonic() - started, 3),
                trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
            held_out=metrics,
        ),
        LexicalParameters(vocabulary, template, model, calibration),
    )


def typical_lengths(dataset: Dataset) -> NDArray[np.float64]:
    """What is learnt of each prompt: the geometric mean of its answers' lengths, shape (rows,).

    Geometric, because one endless answer says little about the others.
    """
    if dataset.samples is None:
        return dataset.lengths.astype(np.float64)
    return np.array([np.exp(np.log(np.maximum(1, lengths)).mean()) for lengths in dataset.samples])


def _calibrate(
    dataset: Dataset, scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], HeldOut]:
    """The calibration table, and how it does on rows that it was not fitted to.

    Args:
        dataset: the training rows.
        scores: shape (rows,), cross-fitted; NaN where no fold scored the row.
    """
    (rows,) = np.nonzero(np.isfinite(scores))
    truth = dataset.lengths[rows].astype(np.float64)
    expected = np.empty(rows.size)
    inside = np.empty(rows.size, dtype=bool)
    for half in (0, 1):
        fitted, measured = rows[half::2], rows[1 - half :: 2]
        table = fit_calibration(*_answers(dataset, scores, fitted))
        predicted = calibrate_many(scores[measured], table)
        lengths = dataset.lengths[measured]
        expected[1 - half :: 2] = predicted[:, 0]
        inside[1 - half :: 2] = (predicted[:, 1] <= lengths) & (lengths <= predicted[:, 3])
    return fit_calibration(*_answers(dataset, scores, rows)), HeldOut(
        rows=rows.size,
        tau=kendall_tau(truth, scores[rows]),
        mae=float(np.abs(expected - truth).mean()),
        coverage_80=float(inside.mean()),
    )


def _answers(
    dataset: Dataset, scores: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score and length of every answer to the prompts in `rows`."""
    if dataset.samples is None:
        return scores[rows], dataset.lengths[rows].astype(np.float64)
    samples = [dataset.samples[row] for row in rows]
    repeated = np.repeat(scores[rows], [lengths.size for lengths in samples])
    return repeated, np.concatenate(samples).astype(np.float64)


def _silent(_stage: str, _part: float) -> None:
    """No progress is shown."""
