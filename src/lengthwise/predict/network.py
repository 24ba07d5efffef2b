"""A small neural network on sparse rows: one hidden layer, trained by any loss.

    outputs = output_bias + max(0, hidden_bias + rows · embedding) · output

Each feature has a vector of its own (its row of the embedding), of which few change in one step.
Entries are dropped at random in training, so that no feature relies on another's company.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.descend import Adam
from lengthwise.predict.linear import SparseRows

WEIGHT_DECAY: Final = 1e-3
DROPPED: Final = 0.3  #: share of entries dropped in training

_START: Final = 0.1  #: standard deviation of the embedding at the start

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


class Network:
    """A network in training by Adam; vectors of features that a batch has not stay as they are."""

    def __init__(
        self, rows: SparseRows, columns: int, hidden: int, outputs: int, random: np.random.Generator
    ) -> None:
        """Random weights.

        Args:
            rows: the features of n prompts.
            columns: how many features there are.
            hidden: units of the hidden layer.
            outputs: how many numbers it gives for a prompt.
            random: of the weights and of what is dropped.
        """
        self.embedding = random.normal(0, _START, (columns, hidden)).astype(np.float32)
        self.hidden_bias = np.zeros(hidden)
        self.output = random.normal(0, hidden**-0.5, (hidden, outputs))
        self.output_bias = np.zeros(outputs)
        self._rows = rows
        self._random = random
        self._batch = np.zeros(0, dtype=np.int64)
        self._kept = np.zeros(0, dtype=np.float32)
        self._hidden = np.zeros((0, hidden))
        self._adam = [
            Adam(self.embedding, WEIGHT_DECAY),
            *map(Adam, (self.hidden_bias, self.output, self.output_bias)),
        ]
        self._slope = np.zeros_like(self.embedding)  # all 0 between steps

    def outputs(self, rows: NDArray[np.int64]) -> Floats:
        """Shape (rows, outputs), with entries dropped at random."""
        entries = int((self._rows.starts[rows + 1] - self._rows.starts[rows]).sum())
        drawn = self._random.random(entries, dtype=np.float32)
        self._batch = rows
        self._kept = (drawn >= DROPPED).astype(np.float32) / np.float32(1 - DROPPED)
        summed = _embed(*self._rows, rows, self._kept, self.embedding)
        self._hidden = np.maximum(0.0, summed + self.hidden_bias)
        return self._hidden @ self.output + self.output_bias

    def step(self, gradient: Floats, rate: float) -> None:
        """One step of Adam."""
        hidden_gradient = (gradient @ self.output.T) * (self._hidden > 0)
        slopes = hidden_gradient.sum(axis=0), self._hidden.T @ gradient, gradient.sum(axis=0)
        for adam, slope in zip(self._adam[1:], slopes, strict=True):
            adam.step(slope, rate)
        touched = _embed_back(*self._rows, self._batch, self._kept, hidden_gradient, self._slope)
        self._adam[0].step_rows(self._slope, touched, rate)


@compiled
def _embed(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    kept: Vectors,
    embedding: Vectors,
) -> Floats:
    """The sum of each row's vectors, times its values and what was kept of them."""
    hidden = embedding.shape[1]
    sums = np.zeros((rows.size, hidden), dtype=np.float32)
    at = 0
    for place in range(rows.size):
        row = rows[place]
        for entry in range(starts[row], starts[row + 1]):
            value = values[entry] * kept[at]
            at += 1
            if value != 0:
                column = columns[entry]
                for unit in range(hidden):
                    sums[place, unit] += value * embedding[column, unit]
    return sums.astype(np.float64)


@compiled
def _embed_back(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    kept: Vectors,
    gradient: Floats,
    slope: Vectors,
) -> NDArray[np.int32]:
    """Add the gradient with respect to the embedding to `slope`; return the rows that have any.

    The gradient given is with respect to what `_embed` returned.
    """
    touched = np.empty(kept.size, dtype=np.int32)
    count = 0
    at = 0
    for place in range(rows.size):
        row = rows[place]
        for entry in range(starts[row], starts[row + 1]):
            value = values[entry] * kept[at]
            at += 1
            if value != 0:
                column = columns[entry]
                touched[count] = column
                count += 1
                for unit in range(slope.shape[1]):
                    slope[column, unit] += value * np.float32(gradient[place, unit])
    return touched[:count]
