"""The networks of a training, the rows that they learn from, and the filter over what they say.

The filter runs over recorded answers, by the functions that serving runs; so its constants are
fitted.

The rows are the usable ones of a folder of states, at the layers that a probe listens to.

The networks are one on decode states, some on prompts, and a baseline on prompt and age.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.probe.fit import (
    Examples,
    Fitted,
    Recipe,
    attention_pooled,
    fit_network,
    probabilities,
)
from lengthwise.probe.probe_folder import Network, Refinement
from lengthwise.probe.refine import (
    HIGH,
    LEAST_EPSILON,
    LOW,
    MEAN,
    MEDIAN,
    Filter,
    bin_of,
    midpoints,
    refine,
    start,
    summarise,
)
from lengthwise.probe.states import TRAIN, VALID, Pooling, States

#: Tried on validation rows, besides the raw probe: temper 1, epsilon 1 and no correction.
TEMPERS: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
EPSILONS: Final = (LEAST_EPSILON, 0.001, 0.003, 0.01, 0.03, 0.1)
CORRECTIONS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  #: 0 is the paper's filter, 1 is Bayes' rule
INTERVALS: Final = (1, 2, 4, 8, 16)  #: tokens between predictions for which constants are fitted

_LEAST_RATE: Final = 1e-4
_NO_REACH: Final = 1e-6  # of a quantile that is the median; no power moves it
_STRETCHES: Final = (0.25, 8.0)

Report = Callable[[float], None]  #: called with the part that is done, 0 to 1


class Record(NamedTuple):
    """Answers that have been given: moments sorted by request, then by age."""

    request: NDArray[np.int64]  #: [moments], 0 ≤ request < requests, ascending
    age: NDArray[np.int64]  #: [moments], output tokens so far, ascending within a request
    remaining: NDArray[np.int64]  #: [moments], output tokens still to come
    most: NDArray[np.float64]  #: [moments], that may still come: max_tokens − age
    whole: NDArray[np.float32]  #: [requests, bins], what the prompt says of the whole length
    probe: NDArray[np.float32]  #: [moments, bins], what the probe says of what remains


def every(record: Record, interval: int) -> NDArray[np.bool_]:
    """Which moments have a prediction, if there is one every `interval` tokens, [moments].

    The first moment of a request has one in any case.
    """
    begins = np.diff(record.request, prepend=-1) != 0
    found: NDArray[np.bool_] = ((record.age - 1) % interval == 0) | begins
    return found


def refined(record: Record, constants: Filter, interval: int = 1) -> NDArray[np.float64]:
    """What serving would have believed at every moment.

    A request starts at age 0 with what its prompt says, and is refined at each prediction. Between
    predictions the estimates fall by 1 with each token.

    Args:
        record: the answers.
        constants: of the filter.
        interval: tokens between predictions.

    Returns:
        float64 [moments, 4], the columns of `refine.summarise`.
    """
    requests, bins = record.whole.shape
    posteriors = np.empty((requests, bins))
    start(posteriors, np.arange(requests), record.whole)
    reached = np.zeros(requests, dtype=np.int64)  # the age of the last prediction
    summaries = np.empty((record.age.size, HIGH + 1))
    predicted = np.flatnonzero(every(record, interval))
    for moments in in_turns(record.request[predicted]):
        now = predicted[moments]
        rows, age = record.request[now], record.age[now]
        refine(posteriors, rows, record.probe[now], age - reached[rows], constants)
        reached[rows] = age
        summary = np.empty((now.size, HIGH + 1))
        summarise(posteriors, rows, record.most[now], constants, summary)
        summaries[now] = summary
    if interval > 1:
        _count_down_between(summaries, predicted, record)
    return summaries


def raw(record: Record, edges: NDArray[np.float64], interval: int = 1) -> NDArray[np.float64]:
    """The mean of the probe's newest prediction alone, counted down until the next, [moments]."""
    estimates = (record.probe @ midpoints(edges))[:, np.newaxis]
    predicted = np.flatnonzero(every(record, interval))
    if interval > 1:
        _count_down_between(estimates, predicted, record)
    return within(estimates[:, 0], record.most)


def counted_down(
    whole: NDArray[np.float64], age: NDArray[np.int64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a prediction of the whole length says at an age, all [moments]."""
    return within(whole - age, most)


def within(estimates: NDArray[np.float64], most: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimates of what remains: at least 1, since the answer goes on, and at most `most`."""
    bounded: NDArray[np.float64] = np.minimum(np.maximum(estimates, 1.0), most)
    return bounded


def in_turns(request: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The first moment of every request, then the second of every request, and so on.

    Args:
        request: [moments], ascending.

    Returns:
        for each turn the indices of its moments.
    """
    begins = np.flatnonzero(np.diff(request, prepend=-1))
    sizes = np.diff(begins, append=request.size)
    turn = np.arange(request.size) - np.repeat(begins, sizes)
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.cumsum(np.bincount(turn))[:-1]) if request.size else []


def base_rates(probe: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """How common the probe takes each bin to be, over all states: float64 [bins], > 0.

    Args:
        probe: what it says of training states, [moments, bins].
        weights: how much each counts, [moments].
    """
    mean: NDArray[np.float64] = weights.astype(np.float64) @ probe / weights.sum(dtype=np.float64)
    # A bin that nothing was ever in must not become the likeliest by being divided by nothing.
    return np.maximum(mean, _LEAST_RATE)


def fit_refinement(
    record: Record, edges: NDArray[np.float64], rates: NDArray[np.float64], interval: int
) -> Refinement:
    """The constants with the lowest mean absolute error of the mean, and the quantiles' stretch.

    The raw probe is among those tried, so refinement cannot be worse than it on these rows.

    Args:
        record: validation answers.
        edges: of the bins.
        rates: the bins' base rates.
        interval: tokens between predictions.
    """

    def summaries(constants: Refinement) -> NDArray[np.float64]:
        return refined(record, constants.filter(edges, rates), interval)

    def error(constants: Refinement) -> float:
        return float(np.abs(summaries(constants)[:, MEAN] - record.remaining).mean())

    tried = [
        Refinement(interval=interval, correction=correction, temper=temper, epsilon=epsilon)
        for correction, temper, epsilon in (
            *itertools.product(CORRECTIONS, TEMPERS, EPSILONS),
            (0.0, 1.0, 1.0),
        )
    ]
    best = min(tried, key=error)
    stretch = _stretch(summaries(best), record.remaining)
    return best.model_copy(update={"stretch": stretch})


def _stretch(summaries: NDArray[np.float64], remaining: NDArray[np.int64]) -> float:
    """The power that makes the quantiles hold 80 % of what remained: split-conformal, in logs.

    Each length needs a power of its own to be held: how far it lies from the median, against how
    far the quantile on its side does. The 80 % quantile of these is taken.
    """
    low, median, high = (np.log(summaries[:, column]) for column in (LOW, MEDIAN, HIGH))
    off = np.log(remaining) - median
    reach = np.where(off > 0, high - median, median - low)
    needed = np.abs(off) / np.maximum(reach, _NO_REACH)
    return float(np.clip(np.quantile(needed, 0.8), *_STRETCHES))


def _count_down_between(
    estimates: NDArray[np.float64], predicted: NDArray[np.int64], record: Record
) -> None:
    """Fill in the moments without a prediction, in place: the last estimate less what passed."""
    last = np.searchsorted(predicted, np.arange(record.age.size), side="right") - 1
    source = predicted[last]
    passed = record.age - record.age[source]
    estimates[:] = estimates[source] - passed[:, np.newaxis]
    np.maximum(estimates, 1.0, out=estimates)
    np.minimum(estimates, record.most[:, np.newaxis], out=estimates)


@dataclass(frozen=True)
class Rows:
    """The usable rows of a folder.

    Moments are the output tokens whose state is known, sorted by request and age.
    """

    inputs: NDArray[np.float16]  #: [moments, layers · hidden], the layers side by side
    request: NDArray[np.int64]  #: [moments]
    age: NDArray[np.int64]  #: [moments], output tokens so far
    remaining: NDArray[np.int64]  #: [moments], output tokens still to come
    length: NDArray[np.int64]  #: [requests], output tokens in all
    split: NDArray[np.int8]  #: [requests]
    usable: NDArray[np.bool_]  #: [requests], all of whose prompt's states are finite
    max_tokens: int
    dropped_states: int  #: moments left out: not finite

    @property
    def dropped_requests(self) -> int:
        """Requests left out, with their moments: the prompt's states are not finite."""
        return int((~self.usable).sum())

    def moments(self, split: int) -> NDArray[np.int64]:
        """The moments of a split."""
        return np.flatnonzero(self.split[self.request] == split)

    def requests(self, split: int) -> NDArray[np.int64]:
        """The usable requests of a split."""
        return np.flatnonzero((self.split == split) & self.usable)

    def weights(self) -> NDArray[np.float32]:
        """How many tokens of its answer each moment stands for, [moments].

        Of a training answer only some moments are kept, and no more of a long one. The tokens that
        a server sees are mostly those of long answers.
        """
        kept = np.bincount(self.request, minlength=self.length.size)
        found = (self.length - 1)[self.request] / kept[self.request]
        return found.astype(np.float32)

    def most(self, moments: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many tokens may still have come at each moment."""
        found: NDArray[np.float64] = (self.max_tokens - self.age[moments]).astype(np.float64)
        return found

    def record(self, split: int, whole: NDArray[np.float32], probe: NDArray[np.float32]) -> Record:
        """The answers of a split, for a replay.

        Args:
            split: which.
            whole: [requests, bins], what each prompt says of the whole length.
            probe: [moments of the split, bins], what the probe says.
        """
        moments = self.moments(split)
        present, request = np.unique(self.request[moments], return_inverse=True)
        return Record(
            request=request,
            age=self.age[moments],
            remaining=self.remaining[moments],
            most=self.most(moments),
            whole=whole[present],
            probe=probe,
        )


def layer_rows(states: States, layers: Sequence[int]) -> Rows:
    """Read the states of some layers; leave out what is not finite.

    Raises:
        InputError: a layer that is not stored, or a damaged file.
    """
    length = states.requests.length.astype(np.int64)
    usable = np.ones(length.size, dtype=bool)
    for pooling in ("mean", "last"):
        usable &= np.isfinite(prompt_inputs(states, layers, pooling)).all(axis=1)
    inputs = _side_by_side([states.decode_states(layer) for layer in layers])
    request, age = states.moments
    of_usable = usable[request]
    finite = np.isfinite(inputs).all(axis=1)
    kept = np.flatnonzero(of_usable & finite)
    return Rows(
        inputs=inputs if kept.size == age.size else inputs[kept],
        request=request[kept],
        age=age[kept],
        remaining=(length[request] - age)[kept],
        length=length,
        split=states.requests.split,
        usable=usable,
        max_tokens=states.meta.max_tokens,
        dropped_states=int((of_usable & ~finite).sum()),
    )


def prompt_inputs(states: States, layers: Sequence[int], pooling: Pooling) -> NDArray[np.float16]:
    """Each request's pooled prompt, [requests, layers · hidden]."""
    return _side_by_side([states.prompt_pooled(layer, pooling) for layer in layers])


def prompt_tokens(
    states: States, layers: Sequence[int]
) -> tuple[NDArray[np.float16], NDArray[np.int64]] | None:
    """Every prompt token's state and where each request's begin, where they are stored.

    Returns:
        [tokens, layers · hidden] and [requests + 1], or None.
    """
    found = [states.prompt_states(layer) for layer in layers]
    parts = [each for each in found if each is not None]
    if len(parts) < len(found):
        return None
    return _side_by_side([tokens for tokens, _ in parts]), parts[0][1]


def _side_by_side(parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


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
