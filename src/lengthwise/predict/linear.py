"""The linear model behind the lexical predictor: hashed features → score.

    score = Σ over groups of  Σ idf·weight / √(Σ idf²)

Rare features weigh more (inverse document frequency), and each group of features is scaled to
length 1, so that a long prompt does not outweigh a short one. Features that fewer than two training
prompts have are ignored.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.features import BUCKETS, GROUPS
from lengthwise.predict.listmle import SparseRows, fit_listmle
from lengthwise.predict.ridge import fit_ridge, normal_scores

LEAST_PROMPTS: Final = 2  #: training prompts that must have a feature for it to count

_START_SCALE: Final = 2.0  #: of the ridge fit: one normal score of length is e² in odds to ListMLE


class FeatureRows(NamedTuple):
    """The features of many prompts."""

    starts: NDArray[np.int64]  #: shape (prompts + 1,)
    buckets: NDArray[np.int32]  #: shape (entries,)


class LinearModel(NamedTuple):
    """What is learnt, for the features that count; shape (features,) each."""

    buckets: NDArray[np.int32]  #: ascending
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]  #: inverse document frequency

    def table(self) -> NDArray[np.float32]:
        """For `score`: by group and bucket, idf · weight and idf².

        Shape (GROUPS, buckets of a group, 2).
        """
        table = np.zeros((BUCKETS, 2), dtype=np.float32)
        table[self.buckets, 0] = self.idf * self.weights
        table[self.buckets, 1] = self.idf**2
        return table.reshape(GROUPS, -1, 2)


@compiled
def _bits(size: int) -> int:
    """The binary logarithm of a power of two.

    Sizes come with the tables: compiled functions are cached, and would not notice a change of
    constants in another file.
    """
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return bits


@compiled
def score(buckets: NDArray[np.int32], table: NDArray[np.float32]) -> float:
    """The score of one prompt, smaller = shorter.

    Args:
        buckets: shape (n,), its distinct features.
        table: what `LinearModel.table` gives.
    """
    groups = table.shape[0]
    bits = _bits(table.shape[1])
    flat = table.reshape(-1, 2)
    sums = np.zeros(groups)
    squares = np.zeros(groups)
    for bucket in buckets:
        group = bucket >> bits
        sums[group] += flat[bucket, 0]
        squares[group] += flat[bucket, 1]
    total = 0.0
    for group in range(groups):
        if squares[group] > 0:
            total += sums[group] / np.sqrt(squares[group])
    return total


@compiled
def score_rows(
    features: FeatureRows, rows: NDArray[np.int64], table: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`score` of several prompts, by their place in `features`; shape (rows,)."""
    scores = np.empty(rows.size)
    for place in range(rows.size):
        row = rows[place]
        scores[place] = score(
            features.buckets[features.starts[row] : features.starts[row + 1]], table
        )
    return scores


def fit_linear(
    features: FeatureRows, rows: NDArray[np.int64], lengths: NDArray[np.float64], seed: int
) -> LinearModel:
    """Train on some of the prompts: a ridge fit to ranks, then ListMLE.

    Args:
        features: of all prompts.
        rows: shape (n,), which of them to train on.
        lengths: shape (n,), tokens of their answers.
        seed: of the order of lists and of tie-breaks.
    """
    prompts = np.zeros(BUCKETS, dtype=np.int64)
    _count_prompts(features, rows, prompts)
    buckets = np.flatnonzero(prompts >= LEAST_PROMPTS)
    idf = (np.log((1 + rows.size) / (1 + prompts[buckets])) + 1).astype(np.float32)
    columns = np.full(BUCKETS, -1, dtype=np.int32)
    columns[buckets] = np.arange(buckets.size, dtype=np.int32)
    matrix = _normalised(features, rows, columns.reshape(GROUPS, -1), idf)
    weights = fit_ridge(matrix, buckets.size, normal_scores(lengths))
    weights = fit_listmle(matrix, lengths, _START_SCALE * weights, seed)
    return LinearModel(buckets.astype(np.int32), weights.astype(np.float32), idf)


@compiled
def _count_prompts(
    features: FeatureRows, rows: NDArray[np.int64], prompts: NDArray[np.int64]
) -> None:
    """Add to `prompts`, by bucket, how many of the rows have it."""
    for row in rows:
        for entry in range(features.starts[row], features.starts[row + 1]):
            prompts[features.buckets[entry]] += 1


@compiled
def _normalised(
    features: FeatureRows,
    rows: NDArray[np.int64],
    columns: NDArray[np.int32],
    idf: NDArray[np.float32],
) -> SparseRows:
    """The matrix that the loss sees: idf, each row's groups scaled to length 1.

    Args:
        features: of all prompts.
        rows: shape (n,), those that are wanted.
        columns: shape (GROUPS, buckets of a group), the column of each bucket, −1 for none.
        idf: by column.
    """
    groups = columns.shape[0]
    bits = _bits(columns.shape[1])
    flat = columns.reshape(-1)
    most = 0
    for row in rows:
        most += features.starts[row + 1] - features.starts[row]
    starts = np.zeros(rows.size + 1, dtype=np.int64)
    kept = np.empty(most, dtype=np.int32)
    values = np.empty(most, dtype=np.float32)
    squares = np.empty(groups)
    at = 0
    for place in range(rows.size):
        row = rows[place]
        squares[:] = 0.0
        for entry in range(features.starts[row], features.starts[row + 1]):
            bucket = features.buckets[entry]
            column = flat[bucket]
            if column >= 0:
                squares[bucket >> bits] += idf[column] ** 2
        for entry in range(features.starts[row], features.starts[row + 1]):
            bucket = features.buckets[entry]
            column = flat[bucket]
            if column >= 0:
                kept[at] = column
                values[at] = idf[column] / np.sqrt(squares[bucket >> bits])
                at += 1
        starts[place + 1] = at
    return SparseRows(starts, kept[:at].copy(), values[:at].copy())
