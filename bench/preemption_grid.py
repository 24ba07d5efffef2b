"""Does preemption ever cost more than it wins? A grid of simulations says where.

Each preemptive policy is compared with its twin, itself with `preemption: never`: the same
requests, arrivals and predictions. Run with

    python bench/preemption_grid.py --json > grid.json

Costs are those of shared measurements on an affine engine (7 ms a step, 32 µs a token, 0.04 µs a
token of context); lengths are log-normal, 200 tokens of prompt and of answer on average.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.simulate.cell import Cell, Workload, capacity
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.simulate.sweep import run_sweep
from lengthwise.workload.synthetic import synthetic_trace
from lengthwise.workload.trace import Trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6, source="affine")
LOADS = (0.6, 0.8, 0.9, 1.0, 1.2)
SLOTS = (16, 64, 256)
TAILS = (0.5, 0.8, 1.3)
TAUS = (0.3, 0.5, 0.7, 1.0)
POLICIES = ("srpt", "trail")
SECONDS = {False: 150.0, True: 60.0}  # simulated, below capacity and at or above it


def cells(seeds: int, caching: bool) -> Iterator[tuple[dict[str, Any], Workload, list[Cell]]]:
    """One workload and its cells for every load, number of slots, tail and memory."""
    grid = itertools.product(LOADS, SLOTS, TAILS, ("ample", "tight"))
    for load, slots, sigma, memory in grid:
        sample = synthetic_trace(20_000, 1.0, mean_prompt=200, mean_output=200, sigma=sigma, seed=0)
        # Memory for half of the slots' requests, and at least for the two longest.
        longest = int((sample.prompt_tokens + sample.output_tokens).max())
        engine = EngineSettings(
            slots=slots,
            block_size=16,
            prefix_caching=caching,
            kv_blocks=None if memory == "ample" else max(slots * 300 // 2, 2 * longest) // 16,
        )
        rate = load * capacity(sample, COST, engine)
        for seed in range(seeds):
            trace = synthetic_trace(
                math.ceil(rate * SECONDS[load >= 1.0]),
                rate,
                mean_prompt=200,
                mean_output=200,
                sigma=sigma,
                seed=seed,
            )
            fits = trace.prompt_tokens + trace.output_tokens <= longest
            batch = [
                Cell(
                    label=policy,
                    discipline={"policy": policy, "preemption": preemption},
                    load="trace",
                    cost=COST,
                    engine=engine,
                    seed=seed,
                    predictor=f"noisy-oracle:{tau:g}",
                    tags={"tau": tau, "preemption": preemption},
                )
                for tau in TAUS
                for policy in POLICIES
                for preemption in ("pays", "never")
            ]
            point = {"load": load, "slots": slots, "sigma": sigma, "memory": memory}
            yield point, Workload(_only(trace, fits)), batch


def _only(trace: Trace, kept: NDArray[np.bool_]) -> Trace:
    """The trace without requests that the smallest memory could never hold."""
    return replace(
        trace,
        arrival_s=trace.arrival_s[kept],
        prompt_tokens=trace.prompt_tokens[kept],
        output_tokens=trace.output_tokens[kept],
    )


def run(seeds: int, caching: bool, jobs: int | None) -> list[dict[str, Any]]:
    """The grid: one row for each point and preemptive policy."""
    gains: dict[tuple[Any, ...], list[tuple[float, float, float]]] = {}
    for point, workload, batch in cells(seeds, caching):
        rows = run_sweep(batch, workload, jobs=jobs)
        by = {(row["policy"], row["tau"], row["preemption"]): row for row in rows}
        for policy in POLICIES:
            for tau in TAUS:
                ours, theirs = by[policy, tau, "pays"], by[policy, tau, "never"]
                key = (policy, *point.values(), tau)
                gains.setdefault(key, []).append(
                    (
                        theirs["mean_e2el_ms"] / ours["mean_e2el_ms"],
                        theirs["mean_ttft_ms"] / ours["mean_ttft_ms"],
                        ours["preemptions"] / ours["completed"],
                    )
                )
        print(point, file=sys.stderr)
    names = ("policy", "load", "slots", "sigma", "memory", "tau")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "prefix_caching": caching,
            "seeds": len(values),
            "e2el_gain": fmean(gain for gain, _, _ in values),
            "e2el_gain_error": stdev(gain for gain, _, _ in values) / math.sqrt(len(values))
            if len(values) > 1
            else None,
            "ttft_gain": fmean(gain for _, gain, _ in values),
            "preemptions_per_request": fmean(count for _, _, count in values),
        }
        for key, values in gains.items()
    ]


def main() -> None:
    """Run the grid and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-prefix-caching", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = run(arguments.seeds, not arguments.no_prefix_caching, arguments.jobs)
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    gains = sorted(row["e2el_gain"] for row in rows)
    print(
        f"{len(rows)} points: twin / policy on the mean, worst {gains[0]:.3f}, "
        f"median {gains[len(gains) // 2]:.3f}, best {gains[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
