"""Bins of what remains of an answer, and refinement: a Bayesian filter over them.

Bin i holds lengths from edges[i] up to edges[i + 1]. A probe says in which bin the remaining length
lies. Equal bins are those of TRAIL (arXiv 2410.01035, section 3: ten on [0, 512]). Geometric bins
grow by a constant factor, so that a few of them tell two tokens from four as well as a thousand
from two thousand. Lengths beyond the last edge count as the last bin's.

TRAIL (likewise section 3) tracks the remaining length as a hidden state that falls by 1 with each
token. With T the chance of changing bins within one token (`transitions`) and p what the probe says
about the newest token, after `elapsed` tokens

    prior(j)     = Σ_i posterior(i) · (T ^ elapsed)(i, j)
    posterior(j) ∝ ((1 − ε) · prior(j) + ε / k) · (p(j) / base(j)) ^ temper

Three constants are ours. Bayes' rule asks for the likelihood of a state given the bin, while a
probe says how likely the bin is given the state: the two differ by how common the bin is at all.
The paper multiplies by p as it is (`base` = 1), so that bins common among the training states are
counted again with every token; dividing by how common they are mends that. Successive tokens look
alike, so p is not new evidence each time: `temper` < 1 counts it for less. And ε is the chance that
the filter has lost track; it keeps a bin that was once ruled out from staying so for ever. ε = 1,
temper = 1 and base = 1 is the raw probe.

Posteriors live in a table, float64 [requests, bins], one row per request, updated in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.errors import InputError

NARROWEST: Final = 2.0  #: tokens, of the first geometric bin; finer is noise
MEAN, LOW, MEDIAN, HIGH = range(4)  #: columns of a summary
LEAST_EPSILON: Final = 1e-6

_COVERED: Final = 0.999  #: share of answers that the bins reach: one endless answer sets no range
_QUANTILES: Final = (0.1, 0.5, 0.9)
_POWERS: Final = 16  #: of T, each the square of the one before: up to 65,535 tokens at once


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


class Filter(NamedTuple):
    """The constants of a filter."""

    edges: NDArray[np.float64]  #: of the bins, shape (k + 1,)
    powers: NDArray[np.float64]  #: T, T², T⁴, …, shape (16, k, k)
    temper: float  #: exponent of the probe's probabilities, ≥ 0
    epsilon: float  #: chance of having lost track, above 0, up to 1
    base: NDArray[np.float64]  #: what the probe's probabilities are divided by, shape (k,), > 0
    stretch: float  #: of the quantiles about the median, as a power, ≥ 0


def new_filter(
    edges: NDArray[np.float64],
    temper: float,
    epsilon: float,
    base: NDArray[np.float64] | None = None,
    stretch: float = 1.0,
) -> Filter:
    """Precompute the constants.

    Args:
        edges: of the bins, ascending from 0, shape (k + 1,).
        temper: 1 as in the paper; less for predictions that repeat one another.
        epsilon: at least `LEAST_EPSILON` is taken.
        base: how common each bin is, shape (k,), > 0; None: all the same, as in the paper.
        stretch: 1 leaves the quantiles as the posterior has them; 2 squares their ratio to the
            median.
    """
    powers = [transitions(edges)]
    for _ in range(_POWERS - 1):
        powers.append(powers[-1] @ powers[-1])
    return Filter(
        np.ascontiguousarray(edges, dtype=np.float64),
        np.stack(powers),
        float(temper),
        min(1.0, max(LEAST_EPSILON, float(epsilon))),
        np.ones(edges.size - 1) if base is None else np.ascontiguousarray(base, dtype=np.float64),
        float(stretch),
    )


@compiled
def start(
    posteriors: NDArray[np.float64],
    rows: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> int:
    """Begin tracking: a first distribution takes the place of the posterior.

    Args:
        posteriors: the table, shape (requests, k); the rows named are overwritten.
        rows: shape (n,), distinct.
        probabilities: shape (n, k), of the whole length if nothing is generated yet. A row that is
            no distribution (NaN, infinite, negative, all zero) becomes the uniform one.

    Returns:
        How many rows were no distribution.
    """
    bins = posteriors.shape[1]
    bad = 0
    for n in range(rows.size):
        posterior = posteriors[rows[n]]
        total = 0.0
        for i in range(bins):
            total += probabilities[n, i] if probabilities[n, i] >= 0.0 else math.nan
        usable = 0.0 < total < math.inf
        bad += not usable
        for i in range(bins):
            posterior[i] = probabilities[n, i] / total if usable else 1.0 / bins
    return bad


@compiled
def pool(
    posteriors: NDArray[np.float64],
    rows: NDArray[np.int64],
    medians: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    constants: Filter,
) -> None:
    """Put together what two readers say of the same whole length: the log-linear pool.

    The posterior becomes the geometric mean of itself and a log-normal law, which is right where
    both know the same, and too careful where each knows something of its own; the product would
    take one prompt for two pieces of evidence.

    Args:
        posteriors: the table, shape (requests, k); the rows named are updated.
        rows: shape (n,), distinct, just started.
        medians: shape (n,), of the law, tokens, > 0.
        sigmas: shape (n,), of its logarithm, > 0.
        constants: of the probe.
    """
    edges = constants.edges
    bins = posteriors.shape[1]
    for n in range(rows.size):
        posterior = posteriors[rows[n]]
        below, total = 0.0, 0.0
        for i in range(bins):
            up_to = 1.0
            if i + 1 < bins:
                z = math.log(edges[i + 1] / medians[n]) / sigmas[n]
                up_to = 0.5 * math.erfc(-z / math.sqrt(2.0))
            share = max(up_to - below, LEAST_EPSILON)
            posterior[i] = math.sqrt(posterior[i] * share)
            total += posterior[i]
            below = up_to
        for i in range(bins):
            posterior[i] /= total


@compiled
def refine(
    posteriors: NDArray[np.float64],
    rows: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    elapsed: NDArray[np.int64],
    constants: Filter,
) -> int:
    """Update by one prediction each.

    Args:
        posteriors: the table, shape (requests, k); the rows named are updated.
        rows: shape (n,), distinct.
        probabilities: shape (n, k), the probe's. A row that is no distribution (NaN, infinite,
            negative, all zero) teaches nothing: its posterior becomes the prior.
        elapsed: shape (n,), output tokens since the row was last started or refined, ≥ 0.
        constants: of the probe.

    Returns:
        How many rows were no distribution.
    """
    bins = posteriors.shape[1]
    prior = np.empty(bins)
    bad = 0
    for n in range(rows.size):
        posterior = posteriors[rows[n]]
        _advance(posterior, elapsed[n], constants.powers, prior)
        total = 0.0
        for i in range(bins):
            chance = probabilities[n, i] / constants.base[i]
            if constants.temper != 1.0:
                chance = chance**constants.temper if chance >= 0.0 else math.nan
            elif not chance >= 0.0:
                chance = math.nan
            prior[i] = posterior[i]
            posterior[i] = (
                (1.0 - constants.epsilon) * posterior[i] + constants.epsilon / bins
            ) * chance
            total += posterior[i]
        usable = 0.0 < total < math.inf
        bad += not usable
        for i in range(bins):
            posterior[i] = posterior[i] / total if usable else prior[i]
    return bad


@compiled
def _advance(
    posterior: NDArray[np.float64],
    elapsed: int,
    powers: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> None:
    """posterior · T^elapsed, in place, by the binary digits of `elapsed`.

    T only leads to the same bin or one below, so all above the diagonal is zero.
    """
    bins = posterior.size
    left = min(max(elapsed, 0), (1 << powers.shape[0]) - 1)
    power = 0
    while left > 0:
        if left & 1:
            scratch[:] = 0.0
            for i in range(bins):
                for j in range(i + 1):
                    scratch[j] += posterior[i] * powers[power, i, j]
            posterior[:] = scratch
        left >>= 1
        power += 1


@compiled
def summarise(
    posteriors: NDArray[np.float64],
    rows: NDArray[np.int64],
    most: NDArray[np.float64],
    constants: Filter,
    summary: NDArray[np.float64],
) -> None:
    """What the posteriors say in tokens.

    The mean is that of the bins' midpoints; quantiles take lengths as spread evenly within a bin,
    and are then drawn away from the median, or towards it, by the filter's `stretch`.

    Args:
        posteriors: the table, shape (requests, k).
        rows: shape (n,).
        most: shape (n,), tokens that each may still generate: `max_tokens` − age.
        constants: of the probe.
        summary: output, shape (n, 4): MEAN, LOW (10 %), MEDIAN and HIGH (90 %) of the tokens still
            to come, each at least 1, since the answer has not ended, and at most `most`.
    """
    edges = constants.edges
    bins = edges.size - 1
    for n in range(rows.size):
        posterior = posteriors[rows[n]]
        mean = 0.0
        below = 0.0  # probability of all bins before this one
        quantile = 0
        for i in range(bins):
            mean += posterior[i] * 0.5 * (edges[i] + edges[i + 1])
            while quantile < 3 and below + posterior[i] >= _QUANTILES[quantile]:
                part = (_QUANTILES[quantile] - below) / posterior[i]
                summary[n, LOW + quantile] = edges[i] + part * (edges[i + 1] - edges[i])
                quantile += 1
            below += posterior[i]
        while quantile < 3:  # rounding left the sum short of the last quantile
            summary[n, LOW + quantile] = edges[bins]
            quantile += 1
        summary[n, MEAN] = mean
        for column in range(4):
            summary[n, column] = min(max(summary[n, column], 1.0), most[n])
        median = summary[n, MEDIAN]
        if constants.stretch != 1.0 and median > 0.0:
            for column in (LOW, HIGH):
                far = median * (summary[n, column] / median) ** constants.stretch
                summary[n, column] = min(max(far, 1.0), most[n])
