"""ListMLE: learning to rank by the likelihood of the whole order.

Loss and training follow "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792; the
authors' trainer.py and listMLE.py): each mini-batch is one list, ties are broken at random, and
Adam descends on

    L = Σᵢ [ log Σ_{k ≥ i} exp(sₖ) − sᵢ ]      with prompts sorted, shortest answer first.

There s is larger for shorter answers. Scores here are the other way round, smaller = shorter, so s
is the negative score. The model is linear, on sparse features.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

LIST_LENGTH: Final = 32  #: prompts of a list, as published
EPOCHS: Final = 5  #: as published
LEARNING_RATE: Final = 3e-4  #: falls to 0 over the run
WEIGHT_DECAY: Final = 1e-2  #: as published
MOST_STEPS: Final = 1_000  #: lists get longer above this many, to bound the time

_EPSILON: Final = 1e-10  #: inside of the logarithm, as published


class SparseRows(NamedTuple):
    """A sparse matrix by rows: one row per prompt, one column per feature."""

    starts: NDArray[np.int64]  #: shape (rows + 1,)
    columns: NDArray[np.int32]  #: shape (entries,)
    values: NDArray[np.float32]  #: shape (entries,)


class _Moments(NamedTuple):
    """What Adam remembers between steps, shape (columns,) each."""

    mean: NDArray[np.float64]  #: of the slope
    square: NDArray[np.float64]  #: of its square


@compiled
def listmle(scores: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The loss of one list, and its gradient.

    Args:
        scores: shape (n,), smaller = shorter, of prompts sorted by the true length of their
            answers, shortest first.

    Returns:
        the loss, and the gradient with respect to the scores, shape (n,).
    """
    count = scores.size
    shift = -np.min(scores)
    tails = np.empty(count)
    tail = 0.0
    for place in range(count - 1, -1, -1):
        tail += np.exp(-scores[place] - shift)
        tails[place] = tail
    loss = 0.0
    inverse = 0.0
    gradient = np.empty(count)
    for place in range(count):
        strength = -scores[place] - shift
        loss += np.log(tails[place] + _EPSILON) - strength
        inverse += 1 / (tails[place] + _EPSILON)
        gradient[place] = 1 - np.exp(strength) * inverse
    return loss, gradient


def fit_listmle(
    rows: SparseRows, lengths: NDArray[np.float64], weights: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Train linear weights from a starting point.

    Args:
        rows: the features of n prompts.
        lengths: shape (n,), tokens of their answers.
        weights: shape (columns,), where to start.
        seed: of the lists and of tie-breaks.

    Returns:
        the trained weights, shape (columns,).
    """
    random = np.random.default_rng(seed)
    weights = weights.copy()
    moments = _Moments(np.zeros_like(weights), np.zeros_like(weights))
    list_length = max(LIST_LENGTH, -(-lengths.size * EPOCHS // MOST_STEPS))
    for epoch in range(EPOCHS):
        _descend(rows, _sorted_lists(lengths, list_length, random), weights, moments, epoch)
    return weights


def _sorted_lists(
    lengths: NDArray[np.float64], list_length: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Deal the prompts into lists, each sorted by length with ties in random order.

    Returns:
        shape (lists, list_length); the few that are left over sit out.
    """
    count = lengths.size
    list_length = min(list_length, count)
    dealt = random.permutation(count)[: count - count % list_length].reshape(-1, list_length)
    # Prompts are dealt in random order, and a stable sort keeps it among equals.
    order = np.argsort(lengths[dealt], axis=1, kind="stable")
    return np.take_along_axis(dealt, order, axis=1)


@compiled
def _descend(
    rows: SparseRows,
    lists: NDArray[np.int64],
    weights: NDArray[np.float64],
    moments: _Moments,
    epoch: int,
) -> None:
    """One epoch of Adam (Kingma and Ba, arXiv 1412.6980), one step a list, in place."""
    mean, square = moments
    slope = np.zeros_like(weights)
    scores = np.zeros(lists.shape[1])
    step = epoch * lists.shape[0]
    steps = EPOCHS * lists.shape[0]
    for prompts in lists:
        for place in range(prompts.size):
            row = prompts[place]
            scores[place] = 0.0
            for entry in range(rows.starts[row], rows.starts[row + 1]):
                scores[place] += rows.values[entry] * weights[rows.columns[entry]]
        _, gradient = listmle(scores)
        slope[:] = 0.0
        for place in range(prompts.size):
            row = prompts[place]
            for entry in range(rows.starts[row], rows.starts[row + 1]):
                slope[rows.columns[entry]] += rows.values[entry] * gradient[place]
        rate = LEARNING_RATE * (1 - step / steps)
        step += 1
        mean_scale = 1 / (1 - 0.9**step)
        square_scale = 1 / (1 - 0.999**step)
        for column in range(weights.size):
            towards = slope[column] + WEIGHT_DECAY * weights[column]
            mean[column] = 0.9 * mean[column] + 0.1 * towards
            square[column] = 0.999 * square[column] + 0.001 * towards * towards
            adaptive = np.sqrt(square[column] * square_scale) + 1e-8
            weights[column] -= rate * mean[column] * mean_scale / adaptive
