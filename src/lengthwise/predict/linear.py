"""Linear weights on sparse rows: by ridge regression in closed form, and trained by any loss.

A linear model's ridge fit to ranks is most of the way to its best ranking, in well under a second.
ListMLE from zero needs many epochs to get as far.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.descend import Adam
from lengthwise.predict.kendall import dense_ranks

PENALTY: Final = 3.0  #: of squared weights; rows have norm at most 2

#: Of the relative residual: taus were the same within 0.0002 at a tenth of it.
_TOLERANCE: Final = 1e-3
_MOST_ITERATIONS: Final = 100


def normal_scores(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each length's rank, as the standard normal number at that place; ties share one.

    Ranks, because order is what scheduling needs and because a few endless answers would else
    decide the fit.
    """
    from scipy.special import ndtri

    ranks = dense_ranks(lengths)
    sizes = np.bincount(ranks)
    # Of a group of ties, the mean of the places that they fill together.
    places = np.cumsum(sizes) - (sizes - 1) / 2
    scores: NDArray[np.float64] = ndtri((places[ranks] - 0.5) / lengths.size)
    return scores


def fit_ridge(rows: SparseRows, columns: int, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights that minimise ‖X·w − (targets − mean)‖² + PENALTY·‖w‖².

    Solved in the dual, (X·Xᵀ + PENALTY·I)·a = targets, w = Xᵀ·a, by conjugate gradients (Hestenes
    and Stiefel, 1952): neither matrix is ever formed. The few lines stand here because a library's
    inner products are those of the machine's BLAS, and the last digit of a predictor would be too.

    Args:
        rows: X, one row per prompt.
        columns: how many columns X has.
        targets: shape (rows,).

    Returns:
        the weights, shape (columns,).
    """
    from scipy.sparse import csr_array

    shape = (targets.size, columns)
    matrix: Any = csr_array((rows.values.astype(np.float64), rows.columns, rows.starts), shape)
    transposed = matrix.T
    dual = np.zeros(targets.size)
    missed = targets - targets.mean()
    direction = missed
    square = _inner(missed, missed)
    enough = square * _TOLERANCE**2
    for _ in range(_MOST_ITERATIONS):
        if square <= enough:
            break
        image = matrix @ (transposed @ direction) + PENALTY * direction
        step = square / _inner(direction, image)
        dual = dual + step * direction
        missed = missed - step * image
        before, square = square, _inner(missed, missed)
        direction = missed + square / before * direction
    weights: NDArray[np.float64] = transposed @ dual
    return weights


def _inner(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """The inner product, added up in an order that is the same on every machine."""
    return float(np.add.reduce(left * right))


WEIGHT_DECAY: Final = 1e-2  #: as published with ListMLE

Floats = NDArray[np.float64]


class SparseRows(NamedTuple):
    """A sparse matrix by rows: one row per prompt, one column per feature."""

    starts: NDArray[np.int64]  #: shape (rows + 1,)
    columns: NDArray[np.int32]  #: shape (entries,)
    values: NDArray[np.float32]  #: shape (entries,)


class Linear:
    """outputs = rows · weights + bias, in training by Adam."""

    def __init__(self, rows: SparseRows, weights: Floats, bias: Floats) -> None:
        """A model of these rows.

        Args:
            rows: the features of n prompts.
            weights: shape (columns, outputs), where to start; changed in place.
            bias: shape (outputs,), changed in place.
        """
        self.weights = weights
        self.bias = bias
        self._rows = rows
        self._batch = np.zeros(0, dtype=np.int64)
        self._adam = Adam(weights, WEIGHT_DECAY), Adam(bias)

    def outputs(self, rows: NDArray[np.int64]) -> Floats:
        """Shape (rows, outputs)."""
        self._batch = rows
        return _multiply(*self._rows, rows, self.weights) + self.bias

    def step(self, gradient: Floats, rate: float) -> None:
        """One step of Adam."""
        slope = _multiply_back(*self._rows, self._batch, gradient, self.weights.shape[0])
        self._adam[0].step(slope, rate)
        self._adam[1].step(gradient.sum(axis=0), rate)


@compiled
def _multiply(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    weights: Floats,
) -> Floats:
    """Some rows of a sparse matrix times a dense one."""
    product = np.zeros((rows.size, weights.shape[1]))
    for place in range(rows.size):
        row = rows[place]
        for entry in range(starts[row], starts[row + 1]):
            for output in range(weights.shape[1]):
                product[place, output] += values[entry] * weights[columns[entry], output]
    return product


@compiled
def _multiply_back(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    gradient: Floats,
    count: int,
) -> Floats:
    """The transpose of those rows times a dense matrix; shape (count, outputs)."""
    product = np.zeros((count, gradient.shape[1]))
    for place in range(rows.size):
        row = rows[place]
        for entry in range(starts[row], starts[row + 1]):
            for output in range(gradient.shape[1]):
                product[columns[entry], output] += values[entry] * gradient[place, output]
    return product
