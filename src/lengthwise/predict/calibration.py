"""From a score, which only orders, to tokens; and what rows that were held out say of it.

In tokens a score is the mean length and its 10/50/90 % quantiles. The mean is by isotonic
regression (Ayer et al., 1955): the best fit among functions that never fall. The quantiles are
those of held-out answers in bins of neighbouring scores, made monotone in the same way. They are
conformal (Vovk, Gammerman and Shafer, 2005): of n answers, a new one falls below the k-th smallest
with probability k / (n + 1), so that is the rank that is taken, not k / n.

Doubt is told by rows that a model was not trained on. That is split-conformal prediction (of the
same authors): whatever the model, the quantiles of held-out answers at a score hold for new answers
too, as long as these come from the same source. For that no row may be calibrated by a model that
was trained on it: rows are dealt into folds, and each is scored by a model of the others. Copies of
a prompt, and answers of one conversation, are dealt together, see `groups_of`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.artifact import HeldOut, Training
from lengthwise.predict.features import WORD_BUCKETS, FeatureRows
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.losses import QUANTILES, all_lengths
from lengthwise.workload.dataset import Dataset, digest_of, first_words

#: Columns of a calibration table.
SCORE, EXPECTED, LOW, MEDIAN, HIGH = range(5)
FOLDS: Final = 5
ENOUGH_ROWS: Final = 4_000  #: held-out rows: further folds are not fitted

_BINS: Final = 100  #: at most so many rows of a table
_BIN_SIZE: Final = 50  #: answers that a bin has at least, where there are so many

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to `values` in weighted least squares.

    Pool adjacent violators, in linear time. SciPy has it too (`isotonic_regression`), but adds up
    in another order, and the last digit of every predictor would be another.

    Args:
        values: shape (n,).
        weights: shape (n,), positive.

    Returns:
        shape (n,).
    """
    return _pool_adjacent_violators(
        np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    )


@compiled
def _pool_adjacent_violators(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    count = values.size
    means = np.empty(count)
    masses = np.empty(count)
    sizes = np.empty(count, dtype=np.int64)
    pools = 0
    for index in range(count):
        means[pools], masses[pools], sizes[pools] = values[index], weights[index], 1
        pools += 1
        while pools > 1 and means[pools - 2] > means[pools - 1]:
            mass = masses[pools - 2] + masses[pools - 1]
            means[pools - 2] = (
                means[pools - 2] * masses[pools - 2] + means[pools - 1] * masses[pools - 1]
            ) / mass
            masses[pools - 2] = mass
            sizes[pools - 2] += sizes[pools - 1]
            pools -= 1
    fitted = np.empty(count)
    at = 0
    for pool in range(pools):
        fitted[at : at + sizes[pool]] = means[pool]
        at += sizes[pool]
    return fitted


def fit_calibration(
    scores: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Learn the table from held-out answers.

    Args:
        scores: shape (n,), n ≥ 1, of prompts that the model was not trained on.
        lengths: shape (n,), tokens of their answers.

    Returns:
        shape (bins, 5), columns SCORE (ascending), EXPECTED, LOW, MEDIAN, HIGH, each
        non-decreasing and at least 1, and LOW ≤ MEDIAN ≤ HIGH.
    """
    order = np.argsort(scores, kind="stable")
    bins = max(1, min(_BINS, scores.size // _BIN_SIZE))
    parts = np.split(order, _between_ties(scores[order], bins))
    table = np.empty((len(parts), 5))
    for index, part in enumerate(parts):
        table[index, SCORE] = scores[part].mean()
        table[index, EXPECTED] = lengths[part].mean()
        table[index, LOW : HIGH + 1] = _conformal(lengths[part])
    sizes = np.array([part.size for part in parts], dtype=np.float64)
    for column in range(EXPECTED, HIGH + 1):
        # An answer has at least the token that ends it.
        table[:, column] = np.maximum(1.0, isotonic(table[:, column], sizes))
    return table


def _between_ties(scores: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Where to cut sorted scores into about equal bins, so that equal ones stay together."""
    wanted = np.arange(1, bins) * scores.size // bins
    cuts = np.unique(np.searchsorted(scores, scores[wanted]))
    return cuts[cuts > 0]


def _conformal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 10, 50 and 90 % quantiles at rank q·(n + 1), shape (3,)."""
    return np.asarray(np.quantile(values, QUANTILES, method="weibull"), dtype=np.float64)


def fit_factors(
    logarithms: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a model's own quantiles must be multiplied with, to be true of held-out answers.

    Conformalised quantile regression (Romano, Patterson and Candès, arXiv 1905.03222), for each
    quantile by itself and on the logarithm.

    Args:
        logarithms: shape (n, 3), of the model's 10, 50 and 90 % quantiles.
        lengths: shape (n,), tokens of the answers.

    Returns:
        shape (3,).
    """
    missed = np.log(np.maximum(1.0, lengths))[:, np.newaxis] - logarithms
    return np.exp([_conformal(missed[:, index])[index] for index in range(len(QUANTILES))])


def quantile_lengths(
    logarithms: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Low, median and high lengths in tokens, in order and at least 1, shape (n, 3)."""
    # Beyond e²⁰ tokens no answer is; the exponential must not overflow.
    lengths = np.exp(np.minimum(logarithms, 20.0)) * factors
    ordered: NDArray[np.float64] = np.maximum(1.0, np.sort(lengths, axis=1))
    return ordered


@compiled
def calibrate(score: float, table: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Expected, low, median and high length at a score, by linear interpolation.

    Beyond the first and the last row of the table they stay what they are there.
    """
    left, right = 0, table.shape[0] - 1
    while right - left > 1:
        middle = (left + right) // 2
        if table[middle, SCORE] <= score:
            left = middle
        else:
            right = middle
    width = table[right, SCORE] - table[left, SCORE]
    part = (score - table[left, SCORE]) / width if width > 0 else 0.0
    part = min(max(part, 0.0), 1.0)
    return (
        table[left, EXPECTED] + part * (table[right, EXPECTED] - table[left, EXPECTED]),
        table[left, LOW] + part * (table[right, LOW] - table[left, LOW]),
        table[left, MEDIAN] + part * (table[right, MEDIAN] - table[left, MEDIAN]),
        table[left, HIGH] + part * (table[right, HIGH] - table[left, HIGH]),
    )


def score_at(expected: float, table: NDArray[np.float64]) -> float:
    """The score of prompts that are expected to take so many tokens: the other way round.

    Scores of the first bin all mean its length; a shorter one goes before them, at 0 tokens by as
    much as the table is wide.
    """
    scores = table[:, SCORE]
    lowest = 2 * scores[0] - scores[-1]
    lengths = np.concatenate(([0.0], table[:, EXPECTED]))
    return float(np.interp(expected, lengths, np.concatenate(([lowest], scores))))


@compiled
def calibrate_many(scores: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """`calibrate` of each score: shape (n, 4), columns expected, low, median, high."""
    lengths = np.empty((scores.size, 4))
    for index in range(scores.size):
        expected, low, median, high = calibrate(scores[index], table)
        lengths[index, 0], lengths[index, 1] = expected, low
        lengths[index, 2], lengths[index, 3] = median, high
    return lengths


def groups_of(dataset: Dataset, features: FeatureRows | None = None) -> Rows:
    """Which rows must stay together where some are held out: those of one number, shape (rows,).

    Answers of one conversation, as what was said in it is in the prompts of all; and all that
    begins with the same prompt, as the model has learnt the lengths of copies.

    Args:
        dataset: the rows.
        features: of each row, ascending within a row. They tell prompts apart where a length log
            has kept no words.
    """
    if dataset.prompts or features is None:
        digests = [digest_of(text) for text in first_words(dataset)]
    else:
        each = np.split(features.buckets, features.starts[1:-1])
        digests = [_digest_of_features(buckets) for buckets in each]
    _, firsts, conversations = np.unique(dataset.rows, return_index=True, return_inverse=True)
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(digests[first], len(numbers)) for first in firsts]
    return np.array(found, dtype=np.int64)[conversations]


def _digest_of_features(buckets: NDArray[np.int32]) -> bytes:
    """Whoever sends the same words, and however they are to be answered: these are copies."""
    words = buckets[: np.searchsorted(buckets, WORD_BUCKETS)]
    return hashlib.blake2b(words.tobytes(), digest_size=8).digest()


def hold_out(groups: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    """Places of about so many rows to measure on, at most half, and of those to learn from.

    Args:
        groups: see `groups_of`; none is in both parts.
        count: rows to measure on.
        seed: of the draw.
    """
    numbers = _apart(groups)
    order = np.random.default_rng(seed).permutation(numbers.max() + 1)
    sizes = np.bincount(numbers)
    taken: list[int] = []
    held_out = 0
    for number in order.tolist():
        if held_out >= count:
            break
        # A prompt that most rows are copies of is learnt from.
        if held_out + sizes[number] <= groups.size // 2:
            taken.append(number)
            held_out += int(sizes[number])
    places = np.argsort(np.argsort(order)[numbers], kind="stable")
    is_taken = np.isin(numbers[places], taken)
    return places[is_taken], places[~is_taken]


def cross_fit(
    groups: Rows,
    seed: int,
    fit: Callable[[Rows, Rows, int], Floats],
    report: Callable[[float], None],
) -> Floats:
    """What models say of rows that they were not trained on.

    Args:
        groups: shape (count,), see `groups_of`; each is in one fold.
        seed: of the folds.
        fit: from rows to train on, rows to score and a seed to outputs, shape (rows, outputs).
        report: called with the part that is done, 0 to 1.

    Returns:
        shape (count, outputs); NaN where no fold scored the row, see `ENOUGH_ROWS`.
    """
    count = groups.size
    folds = _folds(groups, seed)
    used = min(len(folds), -(-ENOUGH_ROWS // folds[0].size))
    scored = []
    for index in range(used):
        report(index / used)
        rest = np.sort(np.concatenate([fold for fold in folds if fold is not folds[index]]))
        scored.append(fit(rest, folds[index], seed + 1 + index))
    outputs = np.full((count, scored[0].shape[1]), np.nan)
    for fold, found in zip(folds, scored, strict=False):
        outputs[fold] = found
    return outputs


def _folds(groups: Rows, seed: int) -> list[Rows]:
    """The places of the rows, divided at random, those of one group together."""
    numbers = _apart(groups)
    count = numbers.max() + 1
    parts = np.array_split(np.random.default_rng(seed).permutation(count), min(FOLDS, count))
    if count == groups.size:
        return parts
    return [np.flatnonzero(np.isin(numbers, part)) for part in parts]


def _apart(groups: Rows) -> Rows:
    """The number of each row's group, from 0; where all rows are one, nothing keeps them apart."""
    apart, numbers = np.unique(groups, return_inverse=True)
    return np.arange(groups.size) if apart.size in (1, groups.size) else numbers


def calibrate_held_out(dataset: Dataset, groups: Rows, scores: Floats) -> tuple[Floats, HeldOut]:
    """A calibration table, see `fit_calibration`, and how it does on rows that it has not seen.

    Args:
        dataset: the training rows. All answers count where a prompt has several.
        groups: shape (rows,), see `groups_of`.
        scores: shape (rows,), of models that had not seen the row; NaN where there is none.
    """
    return _calibrate(
        dataset,
        groups,
        scores[:, np.newaxis],
        scores,
        lambda outputs, lengths: fit_calibration(np.ravel(outputs), lengths),
        lambda outputs, table: calibrate_many(np.ravel(outputs), table),
    )


def calibrate_quantiles(
    dataset: Dataset, groups: Rows, outputs: Floats
) -> tuple[tuple[Floats, Floats], HeldOut]:
    """The same for a model that gives quantiles itself: conformalised quantile regression.

    Args:
        dataset: the training rows.
        groups: shape (rows,), see `groups_of`.
        outputs: shape (rows, 3), logarithms of the quantiles, NaN where there are none.

    Returns:
        a calibration table by the median, and factors, see `fit_factors`.
    """

    def fit(outputs: Floats, lengths: Floats) -> tuple[Floats, Floats]:
        return fit_calibration(outputs[:, 1].copy(), lengths), fit_factors(outputs, lengths)

    def apply(outputs: Floats, fitted: tuple[Floats, Floats]) -> Floats:
        expected = calibrate_many(outputs[:, 1].copy(), fitted[0])[:, :1]
        return np.hstack([expected, quantile_lengths(outputs, fitted[1])])

    return _calibrate(dataset, groups, outputs, outputs[:, 1], fit, apply)


def _calibrate(
    dataset: Dataset,
    groups: Rows,
    outputs: Floats,
    scores: Floats,
    fit: Callable[[Floats, Floats], Any],
    apply: Callable[[Floats, Any], Floats],
) -> tuple[Any, HeldOut]:
    """Fit to all held-out rows; measure on each half what was fitted to the other."""
    (rows,) = np.nonzero(np.isfinite(scores))
    truth = dataset.lengths[rows].astype(np.float64)
    predicted = np.empty((rows.size, 4))
    halves = _apart(groups[rows]) % 2
    for half in (0, 1):
        fitted, measured = rows[halves == half], halves != half
        places, lengths = all_lengths(dataset, fitted)
        predicted[measured] = apply(outputs[rows[measured]], fit(outputs[fitted][places], lengths))
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
