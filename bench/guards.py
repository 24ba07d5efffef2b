"""What guards keep of the gain, and of the tail: simulated, against first come, first served.

    python bench/guards.py
    python bench/guards.py --json > guards.json
    python bench/guards.py --guard 'wait_ratio=1.2;patience=64' --seeds 10,11,12

Real lengths (Vicuna-7B, see --data), 16 slots, `srpt` with predictions of Kendall tau 0.5; a step
takes 7 ms, 32 us a token and 0.04 us a token of context. Figures are fcfs / policy, medians over
seeds: larger is better. `longest_wait` is the mean over requests of the larger of TTFT and the
longest gap between two tokens, `worst_wait` the largest. `bound` is the promise that was measured:
whether it was kept, and how much of it was used at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.cell import capacity
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.predictions import noisy
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.vllm.settings import Settings, parse_spec
from lengthwise.workload.arrivals import burst, gamma
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.trace import Trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)
ENGINE = EngineSettings(slots=16, max_seqs=512)
REQUESTS = 2000
TAU = 0.5
LOADS = ("burst", "1.2", "1.05")
RATIOS = ("mean", "p99", "longest_wait", "worst_wait")


def requests_of(data: Path, load: str, seed: int) -> Trace:
    """Requests of real lengths under a load."""
    table = load_dataset(data / "prompts_alpaca_vicuna7b.parquet", prompt_tokens=True)
    assert table.prompt_tokens is not None
    rows = np.random.default_rng([seed, 7]).integers(len(table.lengths), size=REQUESTS)
    trace = Trace(
        "vicuna",
        burst(REQUESTS),
        np.maximum(np.array(table.prompt_tokens, np.int64)[rows], 1),
        np.maximum(np.array(table.lengths, np.int64)[rows], 1),
        [],
        "synthetic",
    )
    if load == "burst":
        return trace
    rate = float(load) * capacity(trace, COST, ENGINE)
    return trace.with_arrivals(gamma(REQUESTS, rate, 1.0, seed))


def figures(served: Simulation) -> dict[str, float]:
    """One simulation in figures."""
    requests = served.requests
    wait = np.maximum(served.ttft_s, requests["longest_gap_s"])
    return {
        "mean": float(served.e2el_s.mean()),
        "p99": float(np.percentile(served.e2el_s, 99)),
        "longest_wait": float(wait.mean()),
        "worst_wait": float(wait.max()),
    }


def compare(
    data: Path, load: str, specs: list[str], seeds: list[int]
) -> Iterator[tuple[str, bool, dict[str, float]]]:
    """Each guard, with pausing and without: medians over seeds of fcfs / policy."""
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for seed in seeds:
        trace = requests_of(data, load, seed)
        base = figures(simulate(trace, make_discipline("fcfs"), COST, ENGINE))
        predictions = noisy(trace.output_tokens, TAU, seed)
        for spec in specs:
            settings = parse_spec(f"srpt:{spec}" if spec else "srpt", BARE)
            for pausing in (False, True):
                arguments = settings.discipline_arguments(ENGINE.slots) | {"pausing": pausing}
                discipline = make_discipline(**arguments)
                own = figures(simulate(trace, discipline, COST, ENGINE, predictions=predictions))
                ratios = {name: base[name] / own[name] for name in RATIOS}
                found.setdefault((spec, pausing), []).append(ratios)
    for (spec, pausing), each in found.items():
        yield spec, pausing, {name: median(one[name] for one in each) for name in RATIOS}


BARE = Settings(predictor="declared", max_overtakes=None, tau_floor=None)
if __name__ == "__main__":
    specs, seeds = sys.argv[1].split(","), [int(s) for s in sys.argv[2].split(",")]
    for load in LOADS:
        for spec, pausing, row in compare(Path("../shared/data"), load, specs, seeds):
            print(load, spec, pausing, *(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
