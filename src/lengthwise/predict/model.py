"""The model behind the lexical predictors: hashed features → outputs.

    x = idf, each group of a prompt's features scaled to length 1
    outputs = bias + x · weights + max(0, hidden_bias + x · embedding) · output

Rare features weigh more (inverse document frequency), and a long prompt does not outweigh a short
one. Features that fewer than two training prompts have, or that all have, are ignored. Either part
may be missing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.features import BUCKETS, GROUPS, FeatureRows
from lengthwise.predict.linear import SparseRows

LEAST_PROMPTS: Final = 2  #: training prompts that must have a feature for it to count

Floats = NDArray[np.float64]


class WordModel(NamedTuple):
    """What is learnt."""

    buckets: NDArray[np.int32]  #: shape (features,), those that count, ascending
    idf: NDArray[np.float32]  #: shape (features,), inverse document frequency
    weights: NDArray[np.float32]  #: shape (features, outputs), or (features, 0) without them
    bias: NDArray[np.float64]  #: shape (outputs,)
    embedding: NDArray[np.float32]  #: shape (features, hidden); hidden is 0 without them
    hidden_bias: NDArray[np.float64]  #: shape (hidden,)
    output: NDArray[np.float64]  #: shape (hidden, outputs)

    def table(self) -> ModelTable:
        """The same as it is looked up in."""
        places = np.full(BUCKETS, -1, dtype=np.int32)
        places[self.buckets] = np.arange(self.buckets.size, dtype=np.int32)
        idf = self.idf[:, np.newaxis]
        rows = np.hstack([idf**2, idf * self.weights, idf * self.embedding])
        return ModelTable(
            places.reshape(GROUPS, -1),
            np.ascontiguousarray(rows, dtype=np.float32),
            self.bias,
            self.hidden_bias,
            self.output,
        )


class ModelTable(NamedTuple):
    """What inference reads."""

    places: NDArray[np.int32]  #: shape (groups, buckets of a group): the row of each, −1 for none
    rows: NDArray[np.float32]  #: by feature: idf², idf · weights, idf · embedding
    bias: NDArray[np.float64]
    hidden_bias: NDArray[np.float64]
    output: NDArray[np.float64]


def count_features(
    features: FeatureRows, rows: NDArray[np.int64], groups: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which features count, and how rare they are.

    Args:
        features: of all prompts.
        rows: shape (n,), which prompts to count.
        groups: shape (GROUPS,), which groups of features to use.

    Returns:
        buckets and idf, as in `WordModel`.
    """
    prompts = np.zeros(BUCKETS, dtype=np.int64)
    _count_prompts(features.starts, features.buckets, rows, prompts)
    counts = (prompts >= LEAST_PROMPTS) & (prompts < rows.size)
    wanted = counts.reshape(GROUPS, -1) & groups[:, np.newaxis]
    buckets = np.flatnonzero(wanted).astype(np.int32)
    idf = (np.log((1 + rows.size) / (1 + prompts[buckets])) + 1).astype(np.float32)
    return buckets, idf


def matrix_of(
    features: FeatureRows,
    rows: NDArray[np.int64],
    buckets: NDArray[np.int32],
    idf: NDArray[np.float32],
) -> SparseRows:
    """x of some prompts, one column for each of `buckets`."""
    columns = np.full(BUCKETS, -1, dtype=np.int32)
    columns[buckets] = np.arange(buckets.size, dtype=np.int32)
    return _normalised(features.starts, features.buckets, rows, columns.reshape(GROUPS, -1), idf)


def outputs_of_rows(features: FeatureRows, rows: NDArray[np.int64], table: ModelTable) -> Floats:
    """`outputs` of several prompts, by their place in `features`; shape (rows, outputs)."""
    return _outputs_of_rows(features.starts, features.buckets, rows, *table)


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
def outputs(
    buckets: NDArray[np.int32],
    places: NDArray[np.int32],
    rows: NDArray[np.float32],
    bias: Floats,
    hidden_bias: Floats,
    output: Floats,
) -> Floats:
    """The outputs for one prompt, shape (outputs,).

    Args:
        buckets: shape (n,), its distinct features.
        places: with what follows: see `ModelTable`.
        rows: see there.
        bias: see there.
        hidden_bias: see there.
        output: see there.
    """
    groups = places.shape[0]
    bits = _bits(places.shape[1])
    flat = places.reshape(-1)
    width = rows.shape[1]
    sums = np.zeros((groups, width), dtype=np.float32)
    for bucket in buckets:
        place = flat[bucket]
        if place >= 0:
            group = bucket >> bits
            for column in range(width):
                sums[group, column] += rows[place, column]
    totals = np.zeros(width)
    for group in range(groups):
        if sums[group, 0] > 0:
            scale = 1 / np.sqrt(sums[group, 0])
            for column in range(1, width):
                totals[column] += sums[group, column] * scale
    hidden = hidden_bias.size
    direct = width - 1 - hidden
    result = bias.copy()
    for column in range(direct):
        result[column] += totals[1 + column]
    for unit in range(hidden):
        state = totals[1 + direct + unit] + hidden_bias[unit]
        if state > 0:
            for column in range(result.size):
                result[column] += state * output[unit, column]
    return result


@compiled
def _outputs_of_rows(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    wanted: NDArray[np.int64],
    places: NDArray[np.int32],
    rows: NDArray[np.float32],
    bias: Floats,
    hidden_bias: Floats,
    output: Floats,
) -> Floats:
    results = np.empty((wanted.size, bias.size))
    for index in range(wanted.size):
        row = wanted[index]
        mine = buckets[starts[row] : starts[row + 1]]
        results[index] = outputs(mine, places, rows, bias, hidden_bias, output)
    return results


@compiled
def _count_prompts(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    rows: NDArray[np.int64],
    prompts: NDArray[np.int64],
) -> None:
    """Add to `prompts`, by bucket, how many of the rows have it."""
    for row in rows:
        for entry in range(starts[row], starts[row + 1]):
            prompts[buckets[entry]] += 1


@compiled
def _normalised(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int32],
    idf: NDArray[np.float32],
) -> SparseRows:
    """The matrix of some rows; `columns` has the column of each bucket by group, −1 for none."""
    groups = columns.shape[0]
    bits = _bits(columns.shape[1])
    flat = columns.reshape(-1)
    most = 0
    for row in rows:
        most += starts[row + 1] - starts[row]
    own_starts = np.zeros(rows.size + 1, dtype=np.int64)
    kept = np.empty(most, dtype=np.int32)
    values = np.empty(most, dtype=np.float32)
    squares = np.empty(groups)
    at = 0
    for place in range(rows.size):
        row = rows[place]
        squares[:] = 0.0
        for entry in range(starts[row], starts[row + 1]):
            bucket = buckets[entry]
            column = flat[bucket]
            if column >= 0:
                squares[bucket >> bits] += idf[column] ** 2
        for entry in range(starts[row], starts[row + 1]):
            bucket = buckets[entry]
            column = flat[bucket]
            if column >= 0:
                kept[at] = column
                values[at] = idf[column] / np.sqrt(squares[bucket >> bits])
                at += 1
        own_starts[place + 1] = at
    return SparseRows(own_starts, kept[:at].copy(), values[:at].copy())
