"""Losses: what a model of answer lengths is trained to lower, and the targets they compare with.

Each is one function of scores and targets that returns the loss and its gradient with respect to
the scores, so that any model that can push a gradient back can be trained by it: the sparse models
here, and a neural encoder by `scores.backward(gradient)`.

Scores are smaller for shorter answers; the papers have it the other way round.

    listmle         the likelihood of the whole order (Xia et al., ICML 2008), as in "Efficient LLM
                    Scheduling by Learning to Rank" (arXiv 2408.15792): a mini-batch is one list
    listnet         which prompt comes first (Cao et al., ICML 2007)
    pairwise        a margin between each two prompts, as in PARS (arXiv 2510.03243)
    cross-entropy   which bucket of lengths, as in S3 and in the classifiers of arXiv 2408.15792
    huber           the logarithm of the length (Huber, 1964)
    pinball         quantiles of the logarithm (Koenker and Bassett, 1978)

Buckets are those of "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792, trainer.py):
lengths are cut at 8,192 tokens and divided by the bucket's size without remainder. The paper ranks
with buckets of 10 tokens and classifies with 820, 100, 10 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.errors import unknown_name
from lengthwise.workload.dataset import Dataset

QUANTILES: Final = (0.1, 0.5, 0.9)  #: that every predictor gives

LONGEST: Final = 8_192  #: tokens; answers that are longer count as this long

_EPSILON: Final = 1e-10  #: inside of ListMLE's logarithm, as published
_MARGIN: Final = 1.0  #: that a longer answer's score should be above a shorter one's

Floats = NDArray[np.float64]
Differentiated = tuple[float, Floats]  #: a loss, and its gradient in the shape of the scores


def typical_lengths(dataset: Dataset) -> Floats:
    """The length of each prompt's answer, or the geometric mean of several, shape (rows,).

    Geometric, because one endless answer says little about the others.
    """
    if dataset.samples is None:
        return dataset.lengths.astype(np.float64)
    return np.array([np.exp(np.log(np.maximum(1, lengths)).mean()) for lengths in dataset.samples])


def drawn_lengths(dataset: Dataset, random: np.random.Generator) -> Floats:
    """The length of one answer to each prompt, drawn where there are several, shape (rows,).

    For losses that learn a distribution: drawn again each epoch, all answers are seen.
    """
    if dataset.samples is None:
        return dataset.lengths.astype(np.float64)
    return np.array([random.choice(lengths) for lengths in dataset.samples], dtype=np.float64)


def all_lengths(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Every answer to the prompts in `rows`.

    Returns:
        each answer's place in `rows`, and its length in tokens; shape (answers,) each.
    """
    places = np.arange(rows.size)
    if dataset.samples is None:
        return places, dataset.lengths[rows].astype(np.float64)
    samples = [dataset.samples[row] for row in rows]
    sizes = [lengths.size for lengths in samples]
    return np.repeat(places, sizes), np.concatenate(samples).astype(np.float64)


def bucketed(lengths: Floats, bucket: int) -> Floats:
    """The middle of each length's bucket, in tokens, shape (n,): with a bucket of 1, the length."""
    cut = np.minimum(LONGEST, lengths)
    return cut if bucket == 1 else np.floor(cut / bucket) * bucket + (bucket - 1) / 2


def log_lengths(lengths: Floats, bucket: int) -> Floats:
    """The natural logarithm of the middle of each length's bucket, at least of 1, shape (n,)."""
    logarithms: Floats = np.log(np.maximum(1.0, bucketed(lengths, bucket)))
    return logarithms


def bucket_numbers(lengths: Floats, bucket: int) -> Floats:
    """The number of each length's bucket, from 0, shape (n,)."""
    return np.floor(np.minimum(LONGEST, lengths) / bucket)


def listmle(scores: Floats, targets: Floats) -> Differentiated:
    """Minus the log-likelihood that prompts are drawn shortest first (Plackett and Luce).

        Σᵢ [ log Σ_{k ≥ i} exp(−sₖ) + sᵢ ]      with prompts sorted, shortest answer first

    Ties stay in the order in which they are given: deal lists at random, and they are broken at
    random, as published.

    Args:
        scores: shape (n,), of one list.
        targets: shape (n,), larger for longer answers.
    """
    order = np.argsort(targets, kind="stable")
    value, sorted_gradient = _listmle_sorted(scores[order])
    gradient = np.empty_like(sorted_gradient)
    gradient[order] = sorted_gradient
    return value, gradient


@compiled
def _listmle_sorted(scores: Floats) -> Differentiated:
    """ListMLE of prompts that are sorted already, in linear time."""
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


def listnet(scores: Floats, targets: Floats) -> Differentiated:
    """The cross-entropy between who comes first in truth and by score.

    In truth, prompt i comes first with a probability in proportion to exp(−targetᵢ). With
    logarithms of lengths as targets that is 1 / length: the chance that it ends first, if answers
    ended at random at rates of their own.

    Args:
        scores: shape (n,), of one list.
        targets: shape (n,), logarithms of lengths.
    """
    truth = np.exp(_log_softmax(-targets))
    log_chances = _log_softmax(-scores)
    return float(-(truth * log_chances).sum()), truth - np.exp(log_chances)


def pairwise(scores: Floats, targets: Floats) -> Differentiated:
    """The mean over all pairs of max(0, margin − (longer one's score − shorter one's score)).

    Args:
        scores: shape (n,).
        targets: shape (n,), larger for longer answers. Equal ones make no pair.
    """
    longer = targets[:, np.newaxis] > targets[np.newaxis, :]
    pairs = max(1, int(longer.sum()))
    short_by = np.where(longer, _MARGIN - (scores[:, np.newaxis] - scores[np.newaxis, :]), 0.0)
    wrong = short_by > 0
    gradient = (wrong.sum(axis=0) - wrong.sum(axis=1)) / pairs
    return float(short_by[wrong].sum()) / pairs, gradient


def cross_entropy(scores: Floats, targets: Floats) -> Differentiated:
    """The sum over prompts of −log of the probability of the right bucket.

    Args:
        scores: shape (n, buckets).
        targets: shape (n,), the number of each right bucket.
    """
    rows = np.arange(targets.size)
    right = targets.astype(np.int64)
    log_chances = _log_softmax(scores)
    gradient = np.exp(log_chances)
    gradient[rows, right] -= 1
    return float(-log_chances[rows, right].sum()), gradient


def huber(scores: Floats, targets: Floats) -> Differentiated:
    """The sum over prompts of e²/2 where |e| ≤ 1, else |e| − ½, with e = score − target.

    Args:
        scores: shape (n,).
        targets: shape (n,), logarithms of lengths.
    """
    error = scores - targets
    clipped = np.clip(error, -1, 1)
    return float((clipped * (error - clipped / 2)).sum()), clipped


def pinball(scores: Floats, targets: Floats) -> Differentiated:
    """The sum over prompts and over quantiles q of q·e where e ≥ 0, else (q − 1)·e.

    Here e = target − score. The least loss is where a share q of targets lies below the score.

    Args:
        scores: shape (n, 3), one column for each of `QUANTILES`.
        targets: shape (n,), logarithms of lengths.
    """
    levels = np.array(QUANTILES)
    error = targets[:, np.newaxis] - scores
    slope = np.where(error >= 0, levels, levels - 1)
    return float((slope * error).sum()), -slope


def _log_softmax(scores: Floats) -> Floats:
    """Logarithms of softmax along the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


class Loss(NamedTuple):
    """A loss, and what it compares scores with."""

    name: str
    function: Callable[[Floats, Floats], Differentiated]
    targets: Callable[[Floats, int], Floats]  #: of lengths, in buckets of so many tokens
    ranks: bool  #: whether it only orders: its scores have no unit


LOSSES: Final = {
    loss.name: loss
    for loss in (
        Loss("listmle", listmle, bucketed, ranks=True),
        Loss("listnet", listnet, log_lengths, ranks=True),
        Loss("pairwise", pairwise, bucketed, ranks=True),
        Loss("cross-entropy", cross_entropy, bucket_numbers, ranks=False),
        Loss("huber", huber, log_lengths, ranks=False),
        Loss("pinball", pinball, log_lengths, ranks=False),
    )
}


def loss_named(name: str) -> Loss:
    """The loss of a name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]
