"""Bins of what remains of an answer: bin i holds lengths from edges[i] up to edges[i + 1].

A probe says in which bin the remaining length lies. Equal bins are those of TRAIL (arXiv
2410.01035, section 3: ten on [0, 512]). Geometric bins grow by a constant factor, so that a few of
them tell two tokens from four as well as a thousand from two thousand. Lengths beyond the last edge
count as the last bin's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError

NARROWEST: Final = 2.0  #: tokens, of the first geometric bin; finer is noise

_COVERED: Final = 0.999  #: share of answers that the bins reach: one endless answer sets no range


def longest_length(lengths: NDArray[np.int32], max_tokens: int) -> int:
    """Where the last bin ends: what nearly all answers stay below, and no more than may be asked.

    Args:
        lengths: shape (n,), n ≥ 1, output tokens of answers to learn from.
        max_tokens: the most that an answer may have.
    """
    return max(1, min(max_tokens, math.ceil(np.quantile(lengths, _COVERED))))


def equal_edges(longest: float, count: int) -> NDArray[np.float64]:
    """`count` bins of one width on [0, longest], shape (count + 1,).

    Raises:
        InputError: fewer than one bin, or bins narrower than a token.
    """
    _check_count(longest, count)
    return np.linspace(0.0, longest, count + 1)


def geometric_edges(longest: float, count: int) -> NDArray[np.float64]:
    """`count` bins on [0, longest], each wider than the one before by the same factor.

    The first is `NARROWEST` wide; where equal bins would be narrower than that, they are equal.

    Raises:
        InputError: fewer than one bin, or bins narrower than a token.
    """
    _check_count(longest, count)
    if count == 1 or longest <= NARROWEST * count:
        return equal_edges(longest, count)
    from scipy.optimize import brentq

    def overshoot(factor: float) -> float:
        return NARROWEST * (factor**count - 1) / (factor - 1) - longest

    # Between equal bins and one bin that holds the rest.
    factor = brentq(overshoot, 1 + 1e-9, (longest / NARROWEST) ** (1 / (count - 1)) + 1e-9)
    edges = np.concatenate([[0.0], np.cumsum(NARROWEST * factor ** np.arange(count))])
    edges[-1] = longest
    return edges


SHAPES: Final[Mapping[str, tuple[int, Callable[[float, int], NDArray[np.float64]]]]] = {
    # name: (bins by default, how to make them)
    "equal": (10, equal_edges),
    "geometric": (20, geometric_edges),
}


def _check_count(longest: float, count: int) -> None:
    if count < 1 or longest < count:
        raise InputError(
            f"{count} bins do not fit answers of up to {longest:g} tokens: a bin must be at least "
            "one token wide; give fewer bins, or collect longer answers"
        )


def bin_of(remaining: NDArray[np.integer], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each length, shape as `remaining`; beyond the last edge, the last bin."""
    found = np.searchsorted(edges, remaining, side="right") - 1
    return np.clip(found, 0, edges.size - 2).astype(np.int64)


def midpoints(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The length that stands for each bin, shape (bins,)."""
    return (edges[:-1] + edges[1:]) / 2


def transitions(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """T[i, j]: the chance that a length of bin i is in bin j one token later, shape (bins, bins).

    A length falls by 1 with each token. Lengths spread evenly over a bin of width w leave it for
    the one below at rate 1 / w; from the first bin none leaves. For equal bins this is the matrix
    of TRAIL (section 3, "Bayesian inference"), transposed.
    """
    leave = np.minimum(1.0, 1 / np.diff(edges))  # a width of 1 may be off by rounding
    leave[0] = 0.0
    matrix: NDArray[np.float64] = np.diag(1 - leave) + np.diag(leave[1:], -1)
    return matrix
