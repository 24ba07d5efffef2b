"""Models on sparse rows and how they are trained: by any loss, or in closed form.

Any model is trained by any loss in mini-batches, with Adam. As in "Efficient LLM Scheduling by
Learning to Rank" (arXiv 2408.15792, trainer.py): prompts are dealt at random into lists, each list
is a mini-batch, and Adam takes one step a list. The rate falls to 0 over the run, which the paper
does not do and which was measured to help.

Linear weights come from ridge regression in closed form, and are then trained. A linear model's
ridge fit to ranks is most of the way to its best ranking, in well under a second. ListMLE from zero
needs many epochs to get as far.

A small neural network has one hidden layer:

    outputs = output_bias + max(0, hidden_bias + rows · embedding) · output

Each feature has a vector of its own (its row of the embedding), of which few change in one step.
Entries are dropped at random in training, so that no feature relies on another's company.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.kendall import dense_ranks
from lengthwise.predict.losses import Loss

LIST_LENGTH: Final = 32  #: prompts of a list, as published
PENALTY: Final = 3.0  #: of squared weights in a ridge fit; rows have norm at most 2
WEIGHT_DECAY: Final = 1e-2  #: of linear weights, as published with ListMLE
NETWORK_WEIGHT_DECAY: Final = 1e-3
DROPPED: Final = 0.3  #: share of entries that a network drops in training

# Of Adam.
_MEAN_DECAY: Final = 0.9
_SQUARE_DECAY: Final = 0.999
_TINY: Final = 1e-8

#: Of a ridge fit's relative residual: taus were the same within 0.0002 at a tenth of it.
_TOLERANCE: Final = 1e-3
_MOST_ITERATIONS: Final = 100
_START: Final = 0.1  #: standard deviation of a network's embedding at the start

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Array = NDArray[Any]  # float32 or float64, contiguous


class SparseRows(NamedTuple):
    """A sparse matrix by rows: one row per prompt, one column per feature."""

    starts: NDArray[np.int64]  #: shape (rows + 1,)
    columns: NDArray[np.int32]  #: shape (entries,)
    values: NDArray[np.float32]  #: shape (entries,)


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
            Adam(self.embedding, NETWORK_WEIGHT_DECAY),
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
