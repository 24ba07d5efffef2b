"""Where pausing gains or loses against its twin that never preempts, over a grid, simulated.

    python bench/preemption_grid.py
    python bench/preemption_grid.py --json > grid.json

Loads, batches, tails, predictions, and KV memory: ample, or a multiple of what a full batch holds.
Prompts and answers are log-normal with a mean of 200 tokens, the engine is an 8B model on an A100,
and predictions are calibrated, with log-normal noise of σ 1.1 and 0.44, or none. Figures are twin /
pausing, medians over seeds: above 1 pausing is better. `missed` names the points where it is
worse by more than it may be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import kendalltau

from bench.figures.preemption import made_up, shorter_than
from bench.pausing import KEPT, STALL_S, figures
from bench.support.cases import MEMORY, RATIOS, engine_of, said
from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.presets import parse_preset
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.arrivals import gamma

LOADS: Final = (0.6, 0.8, 0.9, 1.0, 1.2)
SLOTS: Final = (16, 64, 256)
TAILS: Final = (0.5, 0.8, 1.3)  # σ of the lengths
NOISE: Final = (1.1, 0.44, 0.0)  # σ of the predictions
POLICIES: Final = ("srpt", "trail")
COSTS: Final = "a100:llama-3-8b"
REQUESTS: Final = 1500  # at least, and so many for each slot:
PER_SLOT: Final = 12

Place = tuple[int, float, str]  # slots, tail and memory
Point = tuple[str, float, float]  # policy, load and noise


def points(place: Place, seeds: int) -> list[dict[str, Any]]:
    """A row for each load, noise and policy."""
    found: dict[Point, list[dict[str, float]]] = {}
    for seed in range(1, seeds + 1):
        for point, row in draws(place, seed):
            found.setdefault(point, []).append(row)
    slots, tail, memory = place
    return [
        {
            "policy": policy,
            "load": load,
            "slots": slots,
            "sigma": tail,
            "kv": memory,
            "noise": noise,
            **{name: float(f"{median(row[name] for row in each):.4g}") for name in each[0]},
        }
        for (policy, load, noise), each in found.items()
    ]


def draws(place: Place, seed: int) -> Iterator[tuple[Point, dict[str, float]]]:
    """The figures of one draw."""
    slots, tail, memory = place
    cost = parse_preset(COSTS).cost
    sample = made_up(20_000, tail, 0)
    engine = engine_of(slots, sample, memory)
    longest = int((sample.prompt_tokens + sample.output_tokens).max())
    for load in LOADS:
        trace = shorter_than(made_up(max(REQUESTS, PER_SLOT * slots), tail, seed), longest)
        rate = load * capacity(sample, cost, engine)
        trace = trace.with_arrivals(gamma(len(trace), rate, 1.0, seed))
        for noise in NOISE:
            predictions = np.repeat(trace.output_tokens.astype(np.float64)[:, None], 5, axis=1)
            if noise > 0.0:
                held_out = sample.output_tokens[:1000]
                predictions = said(trace.output_tokens, held_out, seed, False, noise)
            tau = float(kendalltau(predictions[:, 0], trace.output_tokens)[0])
            for policy in POLICIES:
                twin, paused = (
                    figures(
                        simulate(
                            trace,
                            make_discipline(policy, **how, max_stall_s=STALL_S),
                            cost,
                            engine,
                            predictions=predictions,
                            log_steps=True,
                        )
                    )
                    for how in ({"preemption": "never"}, {"pausing": True})
                )
                yield (
                    (policy, load, noise),
                    {
                        "tau": tau,
                        **{name: twin[name] / paused[name] for name in RATIOS},
                        "swaps": paused["swaps"],
                        "paused_max": paused["paused_max"],
                        "recomputed_tokens": paused["recomputed_tokens"],
                        "twin_recomputed_tokens": twin["recomputed_tokens"],
                    },
                )


def missed(table: list[dict[str, Any]]) -> Iterator[str]:
    """The points at which pausing is worse than its twin by more than it may be."""
    for row in table:
        for name, share in KEPT.items():
            if row[name] < share:
                where = ", ".join(f"{key} {row[key]}" for key in ("load", "slots", "sigma", "kv"))
                yield f"{row['policy']}, {where}, tau {row['tau']}: {name} {row[name]:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slots", default=",".join(map(str, SLOTS)))
    parser.add_argument("--kv", default=",".join(MEMORY), help="of ample, or multiples")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    slots = [int(text) for text in given.slots.split(",")]
    places: list[Place] = list(itertools.product(slots, TAILS, given.kv.split(",")))
    table: list[dict[str, Any]] = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for place, rows in zip(
            places, pool.map(partial(points, seeds=given.seeds), places), strict=True
        ):
            table += rows
            if not given.json:
                _print(place, rows)
    gaps = list(missed(table))
    if given.json:
        json.dump({"rows": table, "missed": gaps}, sys.stdout, indent=2)
    else:
        print(f"\n{len(gaps)} figures of {len(table)} points are worse:", *gaps, sep="\n  ")
    return 0


def _print(place: Place, rows: list[dict[str, Any]]) -> None:
    said_of = "  ".join(
        f"{name} {min(row[name] for row in rows):.3f} to {max(row[name] for row in rows):.3f}"
        for name in RATIOS
    )
    print(f"slots {place[0]:3}, sigma {place[1]}, KV {place[2]:5}: {said_of}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
