"""What is learnt of a prompt: its answer's length, as a loss wants it.

Buckets are those of "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792, trainer.py):
lengths are cut at 8,192 tokens and divided by the bucket's size without remainder. The paper ranks
with buckets of 10 tokens and classifies with 820, 100, 10 and 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.dataset import Dataset

LONGEST: Final = 8_192  #: tokens; answers that are longer count as this long

Floats = NDArray[np.float64]


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
