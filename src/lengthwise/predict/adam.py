"""Adam (Kingma and Ba, arXiv 1412.6980), on whole arrays or on a few of their rows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

_MEAN_DECAY: Final = 0.9
_SQUARE_DECAY: Final = 0.999
_TINY: Final = 1e-8

Array = NDArray[Any]  # float32 or float64, contiguous


class Adam:
    """Changes one array of weights in place, step by step."""

    def __init__(self, weights: Array, decay: float = 0.0) -> None:
        """Begin with nothing remembered.

        Args:
            weights: what is changed, of any shape.
            decay: of weights, added to their slope.
        """
        self._weights = weights
        self._decay = decay
        self._mean, self._square = np.zeros_like(weights), np.zeros_like(weights)
        self._steps = 0

    def step(self, slope: Array, rate: float) -> None:
        """Change all weights; `slope` has their shape."""
        _step_all(
            self._weights.reshape(-1),
            slope.reshape(-1),
            self._mean.reshape(-1),
            self._square.reshape(-1),
            self._decay,
            *self._scaled(rate),
        )

    def step_rows(self, slope: Array, rows: NDArray[np.int32], rate: float) -> None:
        """Change some rows of a matrix, and set their slope to 0; a row may be named twice."""
        _step_rows(
            self._weights, slope, self._mean, self._square, rows, self._decay, *self._scaled(rate)
        )

    def _scaled(self, rate: float) -> tuple[float, float]:
        """The rate and the factor of squares, corrected for how little is remembered yet."""
        self._steps += 1
        return rate / (1 - _MEAN_DECAY**self._steps), 1 / (1 - _SQUARE_DECAY**self._steps)


@compiled
def _step_all(
    weights: Array,
    slope: Array,
    mean: Array,
    square: Array,
    decay: float,
    rate: float,
    square_scale: float,
) -> None:
    for place in range(weights.size):
        towards = slope[place] + decay * weights[place]
        mean[place] = _MEAN_DECAY * mean[place] + (1 - _MEAN_DECAY) * towards
        square[place] = _SQUARE_DECAY * square[place] + (1 - _SQUARE_DECAY) * towards * towards
        weights[place] -= rate * mean[place] / (np.sqrt(square[place] * square_scale) + _TINY)


@compiled
def _step_rows(
    weights: Array,
    slope: Array,
    mean: Array,
    square: Array,
    rows: NDArray[np.int32],
    decay: float,
    rate: float,
    square_scale: float,
) -> None:
    # In single precision where the weights are: twice as many fit in a register.
    part_mean = weights.dtype.type(1 - _MEAN_DECAY)
    part_square = weights.dtype.type(1 - _SQUARE_DECAY)
    decay = weights.dtype.type(decay)
    rate = weights.dtype.type(rate)
    square_scale = weights.dtype.type(square_scale)
    tiny = weights.dtype.type(_TINY)
    for row in rows:
        for place in range(weights.shape[1]):
            # Exactly 0 is a row that was done already, or a place that the batch does not touch.
            towards = slope[row, place]
            if towards != 0:
                slope[row, place] = 0
                towards += decay * weights[row, place]
                mean[row, place] += part_mean * (towards - mean[row, place])
                square[row, place] += part_square * (towards * towards - square[row, place])
                adaptive = np.sqrt(square[row, place] * square_scale) + tiny
                weights[row, place] -= rate * mean[row, place] / adaptive
