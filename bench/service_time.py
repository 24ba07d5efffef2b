"""Ranking by time or by tokens, where prompts are long: recorded traffic on a simulated H100.

    python bench/service_time.py --json > service-time.json

The Azure traces of 2023 have prompts of 1,155 (conversation) and 2,048 tokens (code) on average.
Gaps between arrivals are as recorded, stretched to the load; predictions have a tau of 0.5.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import DATA, compared, show, simulate_seeds

from lengthwise.simulate.cell import Cell, Workload
from lengthwise.simulate.presets import preset
from lengthwise.workload.load_trace import load_trace

TRACES = {name: DATA / f"trace_azure2023_{name}.parquet" for name in ("conv", "code")}
LOADS = ("0.7", "0.9", "1.05")
POLICIES = ("sjf", "srpt", "hrrn")
PRESET = preset("h100", "llama-3-8b")
ENGINE = replace(PRESET.engine, slots=64)


def cells(name: str, seed: int) -> list[Cell]:
    """fcfs, shortest prefill first, and length policies by tokens and by time."""
    disciplines = {
        "fcfs": {"policy": "fcfs"},
        "shortest-prefill-first": {"policy": "shortest-prefill-first"},
    } | {
        f"{policy}, by {'time' if timed else 'tokens'}": {
            "policy": policy,
            "service_time": timed,
        }
        for policy, timed in itertools.product(POLICIES, (False, True))
    }
    base = Cell(
        label="",
        discipline={},
        load="",
        cost=PRESET.cost,
        engine=ENGINE,
        seed=seed,
        predictor="noisy-oracle:0.5",
        tags={"workload": name},
    )
    return [
        replace(base, label=label, discipline=discipline, load=load)
        for load in LOADS
        for label, discipline in disciplines.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000, help="the first of each trace")
    parser.add_argument("--seeds", type=int, default=3, help="of the predictions' noise")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    rows = []
    for name, path in TRACES.items():
        source = Workload(load_trace(path, limit=arguments.requests))
        rows += simulate_seeds(
            lambda seed, source=source: source,  # type: ignore[misc]
            lambda seed, name=name: cells(name, seed),  # type: ignore[misc]
            arguments.seeds,
        )
    names = ("workload", "load", "policy", "mean_s", "factor_mean", "factor_p99", "factor_ttft")
    show(compared(rows, ("workload", "load")), arguments.json, names)


if __name__ == "__main__":
    main()
