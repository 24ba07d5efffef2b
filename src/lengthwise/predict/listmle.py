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
MOST_STEPS: Final = 2_000  #: lists get longer above this many, to bound the time

_EPSILON: Final = 1e-10  #: inside of the logarithm, as published


class SparseRows(NamedTuple):
    """A sparse matrix by rows: one row per prompt, one column per feature."""

    starts: NDArray[np.int64]  #: shape (rows + 1,)
    columns: NDArray[np.int32]  #: shape (entries,)
    values: NDArray[np.float32]  #: shape (entries,)


@compiled
def listmle(
    scores: NDArray[np.float64], lengths: NDArray[np.float64], tie_break: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """The loss of one list, and its gradient with respect to the scores.

    Args:
        scores: shape (n,), smaller = shorter.
        lengths: shape (n,), the true lengths.
        tie_break: shape (n,), a permutation: of equal lengths, the one named first counts as
            shorter.

    Returns:
        the loss, and the gradient of shape (n,).
    """
    count = scores.size
    order = tie_break[np.argsort(lengths[tie_break], kind="mergesort")]
    shift = -np.min(scores)
    tails = np.empty(count)
    tail = 0.0
    for place in range(count - 1, -1, -1):
        tail += np.exp(-scores[order[place]] - shift)
        tails[place] = tail
    loss = 0.0
    inverse = 0.0
    gradient = np.empty(count)
    for place in range(count):
        index = order[place]
        strength = -scores[index] - shift
        loss += np.log(tails[place] + _EPSILON) - strength
        inverse += 1 / (tails[place] + _EPSILON)
        gradient[index] = 1 - np.exp(strength) * inverse
    return loss, gradient


def fit_listmle(
    rows: SparseRows, lengths: NDArray[np.float64], weights: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Train linear weights from a starting point.

    Args:
        rows: the features of n prompts.
        lengths: shape (n,), tokens of their answers.
        weights: shape (columns,), where to start.
        seed: of the order of prompts and of tie-breaks.

    Returns:
        the trained weights, shape (columns,).
    """
    list_length = max(LIST_LENGTH, -(-lengths.size * EPOCHS // MOST_STEPS))
    return _descend(rows, lengths, weights.copy(), list_length, seed)


@compiled
def _descend(
    rows: SparseRows,
    lengths: NDArray[np.float64],
    weights: NDArray[np.float64],
    list_length: int,
    seed: int,
) -> NDArray[np.float64]:
    """Adam (Kingma and Ba, arXiv 1412.6980) over lists, in place."""
    np.random.seed(seed)
    count = lengths.size
    mean = np.zeros_like(weights)
    square = np.zeros_like(weights)
    slope = np.zeros_like(weights)
    steps = EPOCHS * ((count + list_length - 1) // list_length)
    step = 0
    for _ in range(EPOCHS):
        shuffled = np.random.permutation(count)
        for start in range(0, count, list_length):
            chosen = shuffled[start : start + list_length]
            scores = np.zeros(chosen.size)
            for place in range(chosen.size):
                row = chosen[place]
                for entry in range(rows.starts[row], rows.starts[row + 1]):
                    scores[place] += rows.values[entry] * weights[rows.columns[entry]]
            # The list is shuffled already: its own order breaks ties at random.
            _, gradient = listmle(scores, lengths[chosen], np.arange(chosen.size))
            slope[:] = 0.0
            for place in range(chosen.size):
                row = chosen[place]
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
    return weights
