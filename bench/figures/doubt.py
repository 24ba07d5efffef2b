"""What the predicted law is worth beside its mean, and what a better predictor is worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.figures.cell import Cell, Traffic
from bench.figures.compared import against_fcfs
from bench.figures.policies import GPU, SLOTS
from bench.figures.sources import (
    CASTILLO,
    VICUNA,
    Sources,
    arriving,
    noisy_predictions,
    of_lengths,
    significant,
)
from bench.figures.table import Table
from lengthwise.workload.dataset import load_dataset

LOADS: Final = ("1.05", "1.2", "burst")
DRAWS, REQUESTS = 3, 2000
POLICIES: Final = {
    "fcfs": "fcfs",
    "sjf": "sjf",
    "tie": "tie",
    "gittins, never preempting": "gittins:preemption=never",
    "srpt": "srpt",
    "gittins": "gittins",
}
_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
_PROMPT: Final = 50  # tokens

TAU_LOADS: Final = ("0.9", *LOADS)
TAUS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Lengths = NDArray[np.int64]
Law = Callable[[np.random.Generator], NDArray[np.float64]]


def of_answers(lengths: Lengths, predictions: NDArray[np.float64]) -> Traffic:
    """Requests with prompts of one length."""
    return Traffic(
        of_lengths(np.full(len(lengths), _PROMPT), lengths), significant(predictions), None
    )


def alike(sources: Sources, seed: int) -> Traffic:
    """Real lengths, all predictions about equally unsure."""
    lengths = sources.lengths(REQUESTS, seed).trace.output_tokens
    trace = of_lengths(np.full(REQUESTS, _PROMPT), lengths)
    return Traffic(trace, noisy_predictions(trace, 0.5, seed))


@cache
def answered_ten_times(sources: Sources) -> Lengths:
    """Ten answers' lengths for each prompt, shape [prompts, 10]."""
    found = load_dataset(sources.data / CASTILLO, where={"model": _MODEL}).samples
    assert found is not None
    return np.array([row for row in found if len(row) == 10])


def samples(sources: Sources, seed: int) -> Traffic:
    """One of ten answers is served; the other nine are the prediction."""
    generator = np.random.default_rng(seed)
    rows = answered_ten_times(sources)
    chosen = rows[generator.integers(len(rows), size=REQUESTS)]
    chosen = generator.permuted(np.clip(chosen, 1, 2000), axis=1)
    others = chosen[:, 1:]
    low, median, high = np.quantile(others, (0.1, 0.5, 0.9), axis=1)
    mean = others.mean(axis=1)
    return of_answers(chosen[:, 0], np.stack([mean, mean, low, median, high], axis=1))


def _mixture(seed: int, laws: list[Law]) -> Traffic:
    """Requests whose predictions are the true law of their kind."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(len(laws), size=REQUESTS)
    lengths, predictions = np.zeros(REQUESTS, np.int64), np.zeros((REQUESTS, 5))
    for kind, law in enumerate(laws):
        drawn = np.maximum(law(generator), 1.0)
        own = kinds == kind
        lengths[own] = generator.choice(drawn, own.sum()).astype(np.int64)
        quantiles = np.quantile(drawn, (0.1, 0.5, 0.9))
        predictions[own] = (drawn.mean(), drawn.mean(), *quantiles)
    return of_answers(lengths, predictions)


def mixed(sources: Sources, seed: int) -> Traffic:
    """Sure and unsure requests of the same mean, about 200 tokens."""
    return _mixture(
        seed,
        [
            lambda generator: 200.0 * generator.lognormal(-0.005, 0.1, 20_000),
            lambda generator: 200.0 * generator.lognormal(-0.72, 1.2, 20_000),
        ],
    )


def agent(sources: Sources, seed: int) -> Traffic:
    """Sure requests, and those that end at once or go on for long."""
    return _mixture(
        seed,
        [
            lambda generator: 150.0 * generator.lognormal(-0.005, 0.1, 20_000),
            lambda generator: np.where(
                generator.random(20_000) < 0.5,
                10.0 * generator.lognormal(0.0, 0.2, 20_000),
                300.0 * generator.lognormal(0.0, 0.2, 20_000),
            ),
        ],
    )


WORKLOADS: Final = {"alike": alike, "samples": samples, "mixed": mixed, "agent": agent}


def laws(sources: Sources, workloads: Sequence[str] = tuple(WORKLOADS)) -> Iterator[Cell]:
    """Policies that use the law beside those that use its mean."""
    for name, seed in itertools.product(workloads, range(DRAWS)):
        traffic = WORKLOADS[name](sources, seed)
        for load in LOADS:
            offered = arriving(traffic, load, GPU.cost, SLOTS, seed)
            for policy, spec in POLICIES.items():
                tags = {"workload": name, "load": load, "policy": policy, "seed": seed}
                yield Cell(tags, spec, offered, GPU.cost, SLOTS)


def taus(sources: Sources) -> Iterator[Cell]:
    """fcfs, and two policies with predictors of every tau."""
    for seed, load in itertools.product(range(DRAWS), TAU_LOADS):
        traffic = arriving(sources.lengths(REQUESTS, seed), load, GPU.cost, SLOTS, seed)
        tags = {"load": load, "policy": "fcfs", "seed": seed, "tau": None}
        yield Cell(tags, "fcfs", traffic, GPU.cost, SLOTS)
        for tau in TAUS:
            told = Traffic(traffic.trace, noisy_predictions(traffic.trace, tau, seed))
            for policy in ("sjf", "srpt"):
                tags = {"load": load, "policy": policy, "seed": seed, "tau": tau}
                yield Cell(tags, policy, told, GPU.cost, SLOTS)


TABLES = (
    Table(
        "doubt",
        laws,
        against_fcfs("workload", "load"),
        files=(VICUNA, CASTILLO),
    ),
    Table("tau", taus, against_fcfs("load", "tau"), files=(VICUNA,)),
)
