"""Traffic that changes under a predictor: what it costs, and what one retraining brings back.

A predictor learns from Dolly's questions and then serves code prompts, by the rules of a server
with `--learn`: its rolling tau is watched on the first 500 answers, and below the floor the order
is that of arrival; a new predictor learns from the older half of these and is placed if it is
better on the newer half. Compared are the requests from the 501st on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.figures.cell import Cell, Traffic
from bench.figures.compared import Row, spread
from bench.figures.policies import GPU, SLOTS
from bench.figures.sources import CASTILLO, Sources, arriving, of_lengths, significant, tokenizer
from bench.figures.table import Table
from lengthwise.counters import Counters
from lengthwise.learn.learner import compare, tau_or_0
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.prediction import Predictor, Prompt
from lengthwise.predict.train import train
from lengthwise.settings import Settings
from lengthwise.telemetry.rolling_tau import RollingTau
from lengthwise.workload.dataset import Dataset, load_dataset

MODELS: Final = {
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen2.5-7B-1M": "Qwen/Qwen2.5-7B-Instruct-1M",
}
BEFORE: Final = "DollyDataset"
AFTER: Final = ("Mbpp", "Apps", "BigCodeBench", "DS1000")
LOADS: Final = ("0.9", "1.05", "1.2")
ORDERS, WATCHED = 5, 500

Scores = NDArray[np.float64]


def mixed(tables: Sequence[Dataset], seed: int) -> Dataset:
    """The rows of several tables in a random order."""
    prompts = [prompt for table in tables for prompt in table.prompts]
    lengths = np.concatenate([table.lengths for table in tables])
    order = np.random.default_rng(seed).permutation(len(prompts))
    return Dataset(
        name="+".join(table.selection for table in tables),
        prompts=[prompts[row] for row in order],
        lengths=lengths[order],
        samples=None,
        rows=np.arange(1, len(prompts) + 1),
        rejected=[],
    )


def predictions(predictor: Predictor, encoded: Sequence[Sequence[int]]) -> Scores:
    """What a predictor says of each prompt, shape [n, 5]."""
    return significant(np.array([predictor.predict(Prompt(ids, {})) for ids in encoded]))


def is_below_floor(scores: Scores, lengths: NDArray[np.int64]) -> bool:
    """What the scheduler's own watch says after these answers."""
    watch = RollingTau(Counters())
    watch.set_floor(Settings().tau_floor)
    for number, (score, length) in enumerate(zip(scores, lengths, strict=True)):
        watch.ended(number, float(score), int(length))
    return watch.below_floor


def cells(sources: Sources) -> Iterator[Cell]:
    """fcfs, the predictor that drifted, and the one that was placed, in several orders."""
    for label, model in MODELS.items():
        known, *code = (
            load_dataset(sources.data / CASTILLO, where={"model": model, "dataset": name})
            for name in (BEFORE, *AFTER)
        )
        before = train(known, tokenizer())
        for seed in range(ORDERS):
            yield from _one_order(label, before, mixed(code, seed), seed)


def _one_order(label: str, before: Predictor, stream: Dataset, seed: int) -> Iterator[Cell]:
    encoded = tokenizer().encode_chat_many(stream.prompts)
    lengths, half, later = stream.lengths, WATCHED // 2, slice(WATCHED, None)
    drifted = predictions(before, encoded)
    below = is_below_floor(drifted[:WATCHED, 0], lengths[:WATCHED])
    candidate = train(stream.first(half), tokenizer(), Recipe(seed=seed))
    renewed = predictions(candidate, encoded)
    newer = slice(half, WATCHED)
    better = compare(lengths[newer], renewed[newer, 0], drifted[newer, 0], seed).is_better
    placed = renewed if better else drifted
    trace = of_lengths(np.array([len(ids) for ids in encoded])[later], lengths[later])
    served = {
        "fcfs": ("fcfs", drifted),
        "drifted": ("fcfs" if below else "ltr", drifted),
        "retrained": ("ltr", placed),
    }
    for load, (name, (spec, scores)) in itertools.product(LOADS, served.items()):
        yield Cell(
            tags={
                "label": label,
                "load": load,
                "seed": seed,
                "policy": name,
                "below_floor": below,
                "accepted": bool(better),
                "tau": round(tau_or_0(lengths[later], scores[later, 0]), 5),
            },
            spec=spec,
            traffic=arriving(Traffic(trace, scores[later]), load, GPU.cost, SLOTS, seed),
            cost=GPU.cost,
            engine=SLOTS,
        )


def rows(cells: Sequence[Row]) -> list[Row]:
    """By model and load: medians, smallest and largest over the orders."""
    by = {(cell["label"], cell["load"], cell["policy"], cell["seed"]): cell for cell in cells}
    found = []
    for label, load in dict.fromkeys((cell["label"], cell["load"]) for cell in cells):
        own = {
            name: [by[label, load, name, seed] for seed in range(ORDERS)]
            for name in ("fcfs", "drifted", "retrained")
        }
        row: Row = {"label": label, "load": load, "seeds": ORDERS}
        for name in ("drifted", "retrained"):
            pairs = zip(own[name], own["fcfs"], strict=True)
            over = [each["mean_e2el_ms"] / fcfs["mean_e2el_ms"] for each, fcfs in pairs]
            row |= spread(f"tau_{name}", [each["tau"] for each in own[name]])
            row |= spread(f"{name}_over_fcfs", over)
        for name in ("below_floor", "accepted"):
            row[name] = sum(each[name] for each in own["drifted"])
        found.append(row)
    return found


TABLES = (Table("drift", cells, rows, files=(CASTILLO,)),)
