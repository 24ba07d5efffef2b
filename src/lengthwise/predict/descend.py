"""Training by mini-batches: any model, any loss.

As in "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792, trainer.py): prompts are
dealt at random into lists, each list is a mini-batch, and Adam takes one step a list. The rate
falls to 0 over the run, which the paper does not do and which was measured to help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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
