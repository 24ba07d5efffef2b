"""When does doubt pay? Policies that use the predicted law beside those that use its mean.

    python bench/doubt.py --json > doubt.json

Workloads, each with predictions that are right as laws:
  alike     real lengths (Vicuna-7B), a noisy oracle with tau 0.5: all predictions about as unsure
  samples   prompts that were answered ten times (CASTILLO, Llama-3.1-8B): one answer is served,
            the other nine are the prediction
  mixed     half of the requests sure of about 200 tokens, half from 20 to 700
  agent     half of the requests sure of 150 tokens; the others stop at 10, or go on to 300
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import COST, DATA, ENGINE, VICUNA, compared, draw, show, simulate_seeds

from lengthwise.simulate.cell import Cell, Workload
from lengthwise.simulate.predictions import noisy
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.trace import Trace

CASTILLO = DATA / "prompts_castillo.parquet"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LOADS = ("1.05", "1.2", "burst")
POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {"policy": "fcfs"},
    "sjf": {"policy": "sjf"},
    "tie": {"policy": "tie"},
    "gittins, never preempting": {"policy": "gittins", "preemption": "never"},
    "srpt": {"policy": "srpt"},
    "gittins": {"policy": "gittins"},
}


def workload_of(lengths: NDArray[np.int64], predictions: NDArray[np.float64]) -> Workload:
    """Requests of 50 prompt tokens."""
    count = len(lengths)
    trace = Trace("", np.zeros(count), np.full(count, 50), lengths, [], "prompts")
    return Workload(trace, predictions)


def alike(count: int, seed: int) -> Workload:
    """All predictions about equally unsure."""
    lengths = draw(VICUNA, count, seed).output_tokens
    return workload_of(lengths, noisy(lengths, 0.5, seed))


@cache
def _answers() -> list[NDArray[np.int64]]:
    samples = load_dataset(CASTILLO, where={"model": MODEL}).samples
    assert samples is not None
    return [row for row in samples if len(row) == 10]


def samples(count: int, seed: int) -> Workload:
    """What nine other answers say of the tenth."""
    generator = np.random.default_rng(seed)
    rows = _answers()
    chosen = np.array([rows[k] for k in generator.integers(len(rows), size=count)])
    chosen = generator.permuted(np.clip(chosen, 1, 2000), axis=1)
    others = chosen[:, 1:]
    low, median, high = np.quantile(others, (0.1, 0.5, 0.9), axis=1)
    mean = others.mean(axis=1)
    return workload_of(chosen[:, 0], np.stack([mean, mean, low, median, high], axis=1))


def _mixture(
    count: int, seed: int, laws: list[Callable[[np.random.Generator], NDArray[np.float64]]]
) -> Workload:
    """Requests whose predictions are the true law of their kind."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(len(laws), size=count)
    lengths, predictions = np.zeros(count, np.int64), np.zeros((count, 5))
    for kind, law in enumerate(laws):
        drawn = np.maximum(law(generator), 1.0)
        own = kinds == kind
        lengths[own] = generator.choice(drawn, own.sum()).astype(np.int64)
        quantiles = np.quantile(drawn, (0.1, 0.5, 0.9))
        predictions[own] = (drawn.mean(), drawn.mean(), *quantiles)
    return workload_of(np.maximum(lengths, 1), predictions)


def mixed(count: int, seed: int) -> Workload:
    """Sure and unsure requests of the same mean, about 200 tokens."""
    return _mixture(
        count,
        seed,
        [
            lambda generator: 200.0 * generator.lognormal(-0.005, 0.1, 20_000),
            lambda generator: 200.0 * generator.lognormal(-0.72, 1.2, 20_000),
        ],
    )


def agent(count: int, seed: int) -> Workload:
    """Sure requests, and those that end at once or go on for long."""
    return _mixture(
        count,
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


WORKLOADS = {"alike": alike, "samples": samples, "mixed": mixed, "agent": agent}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="in each simulation")
    parser.add_argument("--seeds", type=int, default=5, help="of requests, arrivals and noise")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    rows = []
    for name, made in WORKLOADS.items():
        if name == "samples" and not CASTILLO.is_file():
            continue

        def workload(seed: int, made: Callable[[int, int], Workload] = made) -> Workload:
            return made(arguments.requests, seed)

        def cells(seed: int, name: str = name) -> list[Cell]:
            return [
                Cell(
                    label=label,
                    discipline=discipline,
                    load=load,
                    cost=COST,
                    engine=ENGINE,
                    cv=1.0,
                    seed=seed,
                    predictor="given",
                    tags={"workload": name},
                )
                for load in LOADS
                for label, discipline in POLICIES.items()
            ]

        rows += simulate_seeds(workload, cells, arguments.seeds)
    names = ("workload", "load", "policy", "mean_s", "factor_mean", "factor_p99", "factor_ttft")
    show(compared(rows, ("workload", "load")), arguments.json, names)


if __name__ == "__main__":
    main()
