"""Training by mini-batches with Adam: any model, any loss.

As in "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792, trainer.py): prompts are
dealt at random into lists, each list is a mini-batch, and Adam takes one step a list. The rate
falls to 0 over the run, which the paper does not do and which was measured to help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.losses import Loss

LIST_LENGTH: Final = 32  #: prompts of a list, as published

Floats = NDArray[np.float64]


class Model(Protocol):
    """A model in training: it keeps the last mini-batch between the two calls."""

    def outputs(self, rows: NDArray[np.int64]) -> Floats:
        """What it says of some prompts, shape (rows, outputs)."""

    def step(self, gradient: Floats, rate: float) -> None:
        """Change the weights, given the loss's gradient with respect to the last outputs."""


class Schedule(NamedTuple):
    """How long to train, and how fast."""

    epochs: int
    rate: float  #: of the first step
    list_length: int = LIST_LENGTH
    most_steps: int | None = None  #: lists get longer above this many, to bound the time


def descend(
    model: Model,
    loss: Loss,
    targets: Callable[[int], Floats],
    schedule: Schedule,
    seed: int,
) -> None:
    """Train a model in place.

    Args:
        model: to be trained.
        loss: to be lowered.
        targets: of all rows, by epoch, shape (rows,): they differ from epoch to epoch where answers
            are drawn.
        schedule: steps and rates.
        seed: of the lists, and so of tie-breaks.
    """
    random = np.random.default_rng(seed)
    count = targets(0).size
    length = schedule.list_length
    if schedule.most_steps is not None:
        length = max(length, -(-count * schedule.epochs // schedule.most_steps))
    length = min(length, count)
    steps = schedule.epochs * (count // length)
    step = 0
    for epoch in range(schedule.epochs):
        wanted = targets(epoch)
        for rows in deal_lists(count, length, random):
            outputs = model.outputs(rows)
            scores = outputs[:, 0] if outputs.shape[1] == 1 else outputs
            _, gradient = loss.function(scores, wanted[rows])
            model.step(gradient.reshape(outputs.shape), schedule.rate * (1 - step / steps))
            step += 1


def deal_lists(count: int, length: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Deal rows into lists at random: shape (lists, length); the few left over sit out."""
    dealt = random.permutation(count)
    return dealt[: count - count % length].reshape(-1, length)


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
