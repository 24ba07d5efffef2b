"""Our policies and predictors beside TIE and Clairvoyant as published, on the same requests.

TIE's weight of the tail follows the queue: 0.1 × waiting / slots as a request arrives, between 0.1
and 0.5. The queue depends on the ranks, so both are found in turns, from a weight of 0.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.figures.cell import Cell, Traffic, simulated
from bench.figures.compared import against_fcfs
from bench.figures.policies import GPU, SLOTS
from bench.figures.sources import (
    CONTEXT,
    LEARNT_FROM,
    VICUNA,
    Sources,
    arriving,
    predictions,
    significant,
    tokenizer,
)
from bench.figures.table import Table
from bench.published import Clairvoyant, LogTPredictor, moving_beta
from lengthwise.compare.rounds import choose_requests
from lengthwise.simulate.simulation import Simulation
from lengthwise.workload.dataset import load_dataset

LOADS: Final = ("1.05", "1.2", "burst")
DRAWS, REQUESTS = 3, 800
ANSWERS: Final = "response_tokens,tokens_t00,tokens_t03,tokens_t05"
OURS: Final = ("fcfs", "ltr", "tie", "gittins", "srpt", "oracle")
TIE: Final = "TIE, as published"
CLAIRVOYANT: Final = "Clairvoyant"
_ROUNDS: Final = 4  # in which the queue and TIE's weights agree


@cache
def learnt(sources: Sources) -> tuple[LogTPredictor, Clairvoyant]:
    """Both published predictors, trained on the rows that ours is trained on."""
    answers = load_dataset(
        sources.data / VICUNA, split="train", limit=LEARNT_FROM, length_column=ANSWERS
    )
    rows = sources.prompts(VICUNA, "train")
    return LogTPredictor(answers, tokenizer()), Clairvoyant(rows, tokenizer(), classes=True)


def ranked_by(traffic: Traffic, scores: NDArray[np.float64]) -> Traffic:
    """Requests whose only prediction is a rank."""
    told = significant(np.repeat(np.maximum(scores, 1e-6)[:, np.newaxis], 5, axis=1))
    return replace(traffic, predictions=told)


def waiting_at_arrival(simulation: Simulation) -> NDArray[np.int64]:
    """How many requests are waiting as each arrives, shape (n,)."""
    arrived, began = simulation.requests["arrival_s"], simulation.requests["scheduled_s"]
    before = np.arange(arrived.size)  # in the order of arrival
    taken = np.searchsorted(np.sort(began), arrived, side="left")
    waiting: NDArray[np.int64] = np.maximum(before - taken, 0)
    return waiting


def published(sources: Sources) -> Iterator[Cell]:
    """Policies on the same draws of test prompts."""
    laws, trees = learnt(sources)
    table = sources.prompts(VICUNA, "test")
    places = {text: place for place, text in enumerate(table.prompts)}
    whole = laws.laws(table)
    mean, tail = whole.mean_and_tail()
    scores = trees.scores(table.prompts)
    for seed in range(DRAWS):
        requests, rows = drawn(sources, seed)
        chosen = np.array([places[table.prompts[row]] for row in rows])
        plain = sources.drawn(VICUNA, REQUESTS, seed)
        told = replace(plain, predictions=predictions(sources.predictor(VICUNA), requests))
        for load in LOADS:
            cell = partial(Cell, cost=GPU.cost, engine=SLOTS)
            tags = {"load": load, "seed": seed}
            offered = arriving(told, load, GPU.cost, SLOTS, seed)
            for spec in OURS:
                yield cell({"policy": spec, **tags}, spec, offered)
            shortest = ranked_by(offered, 1.0 + scores[chosen])
            yield cell({"policy": CLAIRVOYANT, **tags}, "sjf", shortest)
            beta = np.full(len(chosen), 0.3)
            for _ in range(_ROUNDS):
                inflated = ranked_by(offered, mean[chosen] + beta * tail[chosen])
                tie = cell({"policy": TIE, **tags}, "tie:beta=0", inflated)
                beta = moving_beta(waiting_at_arrival(simulated(tie)), SLOTS.slots)
            yield tie


def drawn(sources: Sources, seed: int) -> tuple[Sequence[Any], list[int]]:
    """The requests of `Sources.drawn`, and the test row that each is from."""
    table = sources.prompts(VICUNA, "test")
    requests, _ = choose_requests(
        table, tokenizer(), count=REQUESTS, max_model_len=CONTEXT, seed=seed
    )
    order = np.random.default_rng(seed).permutation(len(table.prompts)).tolist()
    fits = [
        row
        for row in order
        if table.lengths[row] > 0 and _tokens(table, row) + table.lengths[row] <= CONTEXT
    ]
    return requests, fits[: len(requests)]


def _tokens(table: Any, row: int) -> int:
    return int(table.prompt_tokens[row])


TABLES = (Table("published", published, against_fcfs("load"), files=(VICUNA,), trained=True),)
