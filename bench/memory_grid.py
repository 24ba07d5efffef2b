"""Admission that looks ahead, over sizes of KV memory: a grid of simulations.

    python bench/memory_grid.py --json > memory-grid.json

Each policy is compared with its twin without `memory_growth`, and with fcfs: the same requests,
arrivals and predictions. Memory is given as a share of what a full batch takes at its peak.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import COST, show

from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.cell import Cell, Workload, capacity
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.simulate.sweep import run_sweep
from lengthwise.workload.synthetic import synthetic_trace
from lengthwise.workload.trace import Trace

SHARES = (0.2, 0.3, 0.5, 0.7, 1.0)
LOADS = ("0.8", "1.0", "burst")
SLOTS = (16, 64)
SIGMAS = (0.5, 1.0)
TAUS = (0.3, 0.6, 1.0)
POLICIES = ("sjf", "srpt")
GROWTHS = (0.0, 0.5)
REQUESTS = 1500


def peak_blocks(trace: Trace, slots: int) -> int:
    """KV blocks that a full batch of a burst takes at its peak where there are enough."""
    engine = EngineSettings(slots=slots, token_budget=max(2048, slots), prefix_caching=False)
    steps = simulate(trace, make_discipline("fcfs"), COST, engine, log_steps=True).steps
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    return engine.blocks(longest) - int(steps["free_blocks"].min())


def run(seeds: int, caching: bool) -> list[dict[str, Any]]:
    """One row for each point of the grid and policy: what looking ahead changes."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for slots, sigma, seed in itertools.product(SLOTS, SIGMAS, range(seeds)):
        trace = synthetic_trace(
            REQUESTS, np.inf, mean_prompt=100, mean_output=200, sigma=sigma, seed=seed
        )
        peak = peak_blocks(trace, slots)
        longest = -(-int((trace.prompt_tokens + trace.output_tokens).max()) // 16)
        for share in SHARES:
            engine = EngineSettings(
                slots=slots, kv_blocks=max(int(share * peak), longest), prefix_caching=caching
            )
            cells = [
                Cell(
                    label="fcfs" if policy is None else policy,
                    discipline={"policy": "fcfs"}
                    if policy is None
                    else {"policy": policy, "memory_growth": growth},
                    load=load if load == "burst" else f"rate={_rate(load, trace, engine)}",
                    cost=COST,
                    engine=engine,
                    seed=seed,
                    predictor="oracle" if tau == 1.0 else f"noisy-oracle:{tau:g}",
                    tags={"tau": tau, "growth": growth, "at": load},
                )
                for load in LOADS
                for policy, tau, growth in [
                    (None, 1.0, 0.0),
                    *itertools.product(POLICIES, TAUS, GROWTHS),
                ]
            ]
            rows = run_sweep(cells, Workload(trace), jobs=1)
            by = {(r["at"], r["policy"], r["tau"], r["growth"]): r for r in rows}
            for load, policy, tau, growth in itertools.product(LOADS, POLICIES, TAUS, GROWTHS[1:]):
                ours, twin = by[load, policy, tau, growth], by[load, policy, tau, 0.0]
                stock = by[load, "fcfs", 1.0, 0.0]
                key = (policy, share, slots, sigma, load, tau, growth)
                found.setdefault(key, []).append(
                    {
                        "mean_gain": twin["mean_e2el_ms"] / ours["mean_e2el_ms"],
                        "p99_gain": twin["p99_e2el_ms"] / ours["p99_e2el_ms"],
                        "ttft_gain": twin["mean_ttft_ms"] / ours["mean_ttft_ms"],
                        "throughput_gain": ours["output_throughput"] / twin["output_throughput"],
                        "preemptions": ours["memory_preemptions"] + ours["preemptions"],
                        "twin_preemptions": twin["memory_preemptions"] + twin["preemptions"],
                        "stock_preemptions": stock["memory_preemptions"],
                        "throughput_over_stock": ours["output_throughput"]
                        / stock["output_throughput"],
                        "mean_over_stock": stock["mean_e2el_ms"] / ours["mean_e2el_ms"],
                    }
                )
    names = ("policy", "share", "slots", "sigma", "load", "tau", "growth")
    return [
        {**dict(zip(names, key, strict=True)), **{n: fmean(e[n] for e in group) for n in group[0]}}
        for key, group in found.items()
    ]


def _rate(load: str, trace: Trace, engine: EngineSettings) -> float:
    return float(load) * capacity(trace, COST, engine)


def by_share(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each policy and size of memory: the spread over all else."""
    merged = []
    for policy, share in itertools.product(POLICIES, SHARES):
        group = [row for row in rows if (row["policy"], row["share"]) == (policy, share)]
        total = {
            name: sum(row[name] for row in group)
            for name in ("stock_preemptions", "twin_preemptions", "preemptions")
        }
        line: dict[str, Any] = {"policy": policy, "share": share, "points": len(group), **total}
        for name in ("throughput_gain", "mean_gain", "ttft_gain", "throughput_over_stock"):
            values = [row[name] for row in group]
            line[f"{name}_worst"], line[name] = min(values), median(values)
            line[f"{name}_best"] = max(values)
        merged.append(line)
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-caching", action="store_true", help="without a prefix cache")
    parser.add_argument("--points", action="store_true", help="every point, not the summary")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    rows = run(arguments.seeds, not arguments.no_caching)
    rows = rows if arguments.points else by_share(rows)
    show(rows, arguments.json, list(rows[0]))


if __name__ == "__main__":
    main()
