"""Linear weights on sparse rows, trained by any loss."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.adam import Adam

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
