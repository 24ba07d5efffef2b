"""The networks of a training: on decode states, on prompts, and a baseline on prompt and age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.probe.filter_replay import within
from lengthwise.probe.fit import (
    Examples,
    Fitted,
    Recipe,
    attention_pooled,
    fit_network,
    probabilities,
)
from lengthwise.probe.probe_folder import Network
from lengthwise.probe.refine import (
    bin_of,
    midpoints,
)
from lengthwise.probe.state_rows import Rows, prompt_inputs, prompt_tokens
from lengthwise.probe.states import TRAIN, VALID, Pooling, States

Report = Callable[[float], None]  #: called with the part that is done, 0 to 1


class Workshop(NamedTuple):
    """What all networks of a training have in common."""

    edges: NDArray[np.float64]  #: of the bins
    recipe: Recipe
    seed: int
    checkpoints: Path  #: a folder, one file for each network

    @property
    def bins(self) -> int:
        """How many there are."""
        return self.edges.size - 1


class PromptHead(NamedTuple):
    """A network on the pooled prompt, and what it says of every request."""

    pooling: str  #: "mean", "last" or "attention"
    network: Network
    query: NDArray[np.float32] | None  #: of attention pooling
    whole: NDArray[np.float32]  #: [requests, bins]

    def mae(self, rows: Rows, split: int, edges: NDArray[np.float64]) -> float:
        """Mean absolute error of the whole length, tokens, over the requests of a split."""
        own = rows.requests(split)
        means = within(self.whole[own] @ midpoints(edges), np.full(own.size, rows.max_tokens))
        return float(np.abs(means - rows.length[own]).mean())


def fit_decode(shop: Workshop, rows: Rows, name: str, report: Report) -> Network:
    """The network on decode states: state → bin of what remains."""
    targets = bin_of(rows.remaining, shop.edges)
    train, valid = rows.moments(TRAIN), rows.moments(VALID)
    examples = Examples(rows.inputs, targets, train, valid, rows.weights())
    return _fit(shop, examples, f"decode-{name}", report).network


def fit_prompts(
    shop: Workshop, states: States, layers: Sequence[int], rows: Rows, report: Report
) -> list[PromptHead]:
    """A network for each way of pooling the prompt: pooled states → bin of the whole length.

    Attention is tried where the collection has the state of every prompt token.
    """
    tokens = prompt_tokens(states, layers)
    count = 2 if tokens is None else 3
    targets = bin_of(rows.length, shop.edges)
    train, valid = rows.requests(TRAIN), rows.requests(VALID)
    heads = []
    poolings: tuple[Pooling, ...] = ("mean", "last")
    for number, pooling in enumerate(poolings):
        inputs = prompt_inputs(states, layers, pooling)
        fitted = _fit(
            shop,
            Examples(inputs, targets, train, valid),
            f"prompt-{pooling}",
            _part_of(report, number, count),
        )
        heads.append(
            PromptHead(pooling, fitted.network, None, probabilities(fitted.network, inputs))
        )
    if tokens is not None:
        fitted = _fit(
            shop,
            Examples(tokens[0], targets, train, valid, starts=tokens[1]),
            "prompt-attention",
            _part_of(report, 2, count),
        )
        assert fitted.query is not None
        inputs = attention_pooled(*tokens, fitted.query)
        heads.append(
            PromptHead(
                "attention", fitted.network, fitted.query, probabilities(fitted.network, inputs)
            )
        )
    return heads


def fit_reestimate(
    shop: Workshop, rows: Rows, prompts: NDArray[np.float16], report: Report
) -> NDArray[np.float32]:
    """The baseline that sees no decode state: prompt and age → bin of what remains.

    Args:
        shop: what all networks have in common.
        rows: the moments.
        prompts: [requests, inputs], the pooled prompts.
        report: of progress.

    Returns:
        What it says at every moment, [moments, bins].
    """
    age = rows.age[:, np.newaxis]
    inputs = np.concatenate(
        [prompts[rows.request], age / shop.edges[-1], np.log1p(age)], axis=1, dtype=np.float16
    )
    targets = bin_of(rows.remaining, shop.edges)
    train, valid = rows.moments(TRAIN), rows.moments(VALID)
    examples = Examples(inputs, targets, train, valid, rows.weights())
    return probabilities(_fit(shop, examples, "reestimate", report).network, inputs)


def _part_of(report: Report, done: int, count: int) -> Report:
    """The progress of one of `count` equal parts, `done` of which are behind."""
    return lambda part: report((done + part) / count)


def _fit(shop: Workshop, examples: Examples, name: str, report: Report) -> Fitted:
    return fit_network(
        examples,
        shop.bins,
        shop.recipe,
        seed=shop.seed,
        checkpoint=shop.checkpoints / f"{name}.safetensors",
        progress=report,
    )
