"""How well an order agrees with the truth: Kendall's tau-b, in n·log n steps."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.compiled import compiled
from lengthwise.intervals import draws_of_groups, middle_95

_RESAMPLES: Final = 1_000
_LEAST_RESAMPLES: Final = 100
_RESAMPLED_ROWS: Final = 10_000_000  #: in all, to bound the time on large tables

_Ranks = NDArray[np.int64]


def kendall_tau(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Tau-b, which counts ties against neither side (Kendall, 1945).

    Args:
        truth: shape (n,).
        scores: shape (n,).

    Returns:
        −1 to 1, or None where it is undefined: fewer than two rows, or one side all equal.
    """
    return _tau_of_ranks(dense_ranks(truth), dense_ranks(scores))


def tau_interval(
    truth: ArrayLike,
    scores: ArrayLike,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of tau-b.

    Args:
        truth: shape (n,).
        scores: shape (n,).
        seed: of the draws.
        groups: shape (n,), which rows are drawn together, such as the answers of a conversation;
            None: each by itself.

    Returns:
        the two ends, or None where tau is undefined, or all rows are one group.
    """
    truth_ranks, score_ranks = dense_ranks(truth), dense_ranks(scores)
    count = truth_ranks.size
    groups = np.arange(count) if groups is None else groups
    if _tau_of_ranks(truth_ranks, score_ranks) is None or (groups == groups[0]).all():
        return None
    times = int(np.clip(_RESAMPLED_ROWS // count, _LEAST_RESAMPLES, _RESAMPLES))
    taus = [
        _tau_of_ranks(truth_ranks[drawn], score_ranks[drawn])
        for drawn in draws_of_groups(groups, times, seed)
    ]
    known = [tau for tau in taus if tau is not None]
    return middle_95(known) if known else None  # of very few rows, each draw may be one row


def tau_with_interval(
    truth: ArrayLike,
    scores: ArrayLike,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> tuple[float | None, float | None, float | None]:
    """Tau-b and the ends of its interval, as from `kendall_tau` and `tau_interval`."""
    low, high = tau_interval(truth, scores, seed, groups) or (None, None)
    return kendall_tau(truth, scores), low, high


def dense_ranks(values: ArrayLike) -> _Ranks:
    """Ranks from 0 without gaps; equal values share one. Shape (n,)."""
    _, ranks = np.unique(np.asarray(values), return_inverse=True)
    return ranks.astype(np.int64)


def _tau_of_ranks(truth: _Ranks, scores: _Ranks) -> float | None:
    """Tau-b of two sides given as dense ranks, or as draws from them."""
    pairs = _pairs(np.array([truth.size]))
    tied_truth = _pairs(np.bincount(truth))
    tied_scores = _pairs(np.bincount(scores))
    if tied_truth == pairs or tied_scores == pairs:
        return None
    order = np.lexsort((scores, truth))
    discordant, tied_both = _count_pairs(truth[order], scores[order])
    # What is left of all pairs when the tied and the discordant are taken away is concordant.
    net = pairs - tied_truth - tied_scores + tied_both - 2 * discordant
    return net / math.sqrt(pairs - tied_truth) / math.sqrt(pairs - tied_scores)


def _pairs(sizes: NDArray[np.int64]) -> int:
    """How many pairs can be made within groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())


@compiled
def _count_pairs(truth: _Ranks, scores: _Ranks) -> tuple[int, int]:
    """Discordant pairs, and pairs tied on both sides, of rows sorted by truth, then by score.

    A Fenwick tree (1994) over scores counts, for each row, the earlier ones that scored more. Rows
    of equal truth are sorted by score, so that none of them counts against another.
    """
    tree = np.zeros(scores.max() + 2, dtype=np.int64)
    discordant = 0
    tied_both = 0
    run = 0
    for place in range(scores.size):
        not_more = 0
        node = scores[place] + 1
        while node > 0:
            not_more += tree[node]
            node -= node & -node
        discordant += place - not_more
        node = scores[place] + 1
        while node < tree.size:
            tree[node] += 1
            node += node & -node
        same = place > 0 and truth[place] == truth[place - 1] and scores[place] == scores[place - 1]
        run = run + 1 if same else 0
        tied_both += run
    return discordant, tied_both
