"""When preempting for a shorter request pays, over loads, batches, tails, memory and predictors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Final

import numpy as np

from bench.figures.cell import Cell, Figures, Traffic, rounded, simulated
from bench.figures.compared import Row
from bench.figures.policies import ENGINE, GPU
from bench.figures.sources import Sources, arriving, noisy_predictions
from bench.figures.table import Table
from lengthwise.advise.sweep import capacity, summary
from lengthwise.intervals import standard_error
from lengthwise.simulate.engine import EngineSettings
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace

MEAN: Final = 200  # tokens of prompt and of answer, log-normal

LOADS: Final = ("0.6", "0.8", "0.9", "1", "1.2")
SLOTS: Final = (16, 64, 256)
TAILS: Final = (0.5, 0.8, 1.3)
TAUS: Final = (0.3, 0.5, 0.7, 1.0)
POLICIES: Final = ("srpt", "trail")
SECONDS: Final = {False: 90.0, True: 40.0}  # simulated, below capacity and at or above it

CUTOFFS: Final = ("0", "0.2", "0.5", "0.8", "1", "auto")
CUTOFF_LOADS: Final = ("1.05", "1.2", "burst")
MODES: Final = ("pays", "greedy")
_SCARCE: Final = 0.35  # of the blocks that a full batch of average requests would hold in the end
_CUTOFF_SLOTS: Final = 32


def made_up(count: int, sigma: float, seed: int) -> Trace:
    """Requests of log-normal lengths, all at once."""
    return synthetic_trace(
        count, math.inf, mean_prompt=MEAN, mean_output=MEAN, sigma=sigma, seed=seed
    )


def grid(sources: Sources) -> Iterator[Cell]:
    """Each policy and its twin that never preempts, at every point."""
    for slots, sigma, memory in itertools.product(SLOTS, TAILS, ("ample", "tight")):
        sample = made_up(20_000, sigma, 0)
        # Memory for half of the slots' requests, and at least for the two longest.
        longest = int((sample.prompt_tokens + sample.output_tokens).max())
        tight = max(slots * 300 // 2, 2 * longest) // ENGINE.block_size
        engine = replace(ENGINE, slots=slots, kv_blocks=None if memory == "ample" else tight)
        for load in LOADS:
            rate = float(load) * capacity(sample, GPU.cost, engine)
            count = math.ceil(rate * SECONDS[float(load) >= 1.0])
            trace = shorter_than(made_up(count, sigma, 1), longest)
            traffic = arriving(Traffic(trace), load, GPU.cost, engine, seed=1)
            for tau in TAUS:
                predicted = replace(traffic, predictions=noisy_predictions(trace, tau, seed=1))
                for policy, preemption in itertools.product(POLICIES, ("pays", "never")):
                    yield Cell(
                        tags={
                            "policy": policy,
                            "load": float(load),
                            "slots": slots,
                            "sigma": sigma,
                            "memory": memory,
                            "tau": tau,
                            "preemption": preemption,
                        },
                        spec=f"{policy}:preemption={preemption}",
                        traffic=predicted,
                        cost=GPU.cost,
                        engine=engine,
                    )


def shorter_than(trace: Trace, longest: int) -> Trace:
    """The trace without requests that the smallest memory could never hold."""
    kept = np.flatnonzero(trace.prompt_tokens + trace.output_tokens <= longest)
    return replace(
        trace,
        arrival_s=trace.arrival_s[kept],
        prompt_tokens=trace.prompt_tokens[kept],
        output_tokens=trace.output_tokens[kept],
    )


def grid_rows(cells: Sequence[Row]) -> list[Row]:
    """One row for each point: its latencies against the twin's."""
    names = ("policy", "load", "slots", "sigma", "memory", "tau")
    points: dict[tuple[object, ...], dict[str, Row]] = {}
    for cell in cells:
        key = tuple(cell[name] for name in names)
        points.setdefault(key, {})[cell["preemption"]] = cell
    return [
        {
            **dict(zip(names, key, strict=True)),
            "e2el_gain": round(twins["never"]["mean_e2el_ms"] / twins["pays"]["mean_e2el_ms"], 5),
            "ttft_gain": round(twins["never"]["mean_ttft_ms"] / twins["pays"]["mean_ttft_ms"], 5),
            "preemptions_per_request": round(
                twins["pays"]["preemptions"] / twins["pays"]["completed"], 5
            ),
        }
        for key, twins in points.items()
    ]


def scarce_engine(trace: Trace, caching: bool) -> EngineSettings:
    """An engine whose KV memory is short; the longest request still fits."""
    tokens = trace.prompt_tokens + trace.output_tokens
    needed = max(_SCARCE * _CUTOFF_SLOTS * float(tokens.mean()), 1.1 * float(tokens.max()))
    blocks = math.ceil(needed / ENGINE.block_size)
    return replace(ENGINE, slots=_CUTOFF_SLOTS, prefix_caching=caching, kv_blocks=blocks)


def cutoffs(draws: int, requests: int, sources: Sources) -> Iterator[Cell]:
    """trail with every c, where KV memory is scarce."""
    for seed, caching in itertools.product(range(draws), (True, False)):
        trace = made_up(requests, 0.8, seed)
        engine = scarce_engine(trace, caching)
        predictions = noisy_predictions(trace, 0.6, seed)
        for load in CUTOFF_LOADS:
            traffic = arriving(Traffic(trace, predictions), load, GPU.cost, engine, seed)
            for mode, c in itertools.product(MODES, CUTOFFS):
                yield Cell(
                    tags={
                        "preemption": mode,
                        "prefix_caching": caching,
                        "load": load,
                        "c": c,
                        "seed": seed,
                    },
                    spec=f"trail:c={c};preemption={mode}",
                    traffic=traffic,
                    cost=GPU.cost,
                    engine=engine,
                )


def with_peak(cell: Cell) -> Figures:
    """A cell's figures, and the share of its KV blocks that was in use at the peak."""
    served = simulated(cell, log_steps=True)
    assert cell.engine.kv_blocks is not None
    peak = cell.engine.kv_blocks - int(served.steps["free_blocks"].min())
    return rounded({**summary(served), "peak_kv": peak / cell.engine.kv_blocks})


def cutoff_rows(cells: Sequence[Row]) -> list[Row]:
    """Means over draws, each c beside the best fixed one, with a 95 % interval of the ratio."""
    names = ("preemption", "prefix_caching", "load")
    places: dict[tuple[object, ...], dict[str, list[Row]]] = {}
    for cell in cells:
        key = tuple(cell[name] for name in names)
        places.setdefault(key, {}).setdefault(cell["c"], []).append(cell)
    rows = []
    for key, by_c in places.items():
        means = {c: [each["mean_e2el_ms"] for each in group] for c, group in by_c.items()}
        best = min((c for c in by_c if c != "auto"), key=lambda c: fmean(means[c]))
        for c, group in by_c.items():
            pairs = zip(means[c], means[best], strict=True)
            logs = [math.log(ours / theirs) for ours, theirs in pairs]
            shown = ("mean_e2el_ms", "p95_e2el_ms", "p99_e2el_ms", "recomputed_tokens", "peak_kv")
            rows.append(
                {
                    **dict(zip(names, key, strict=True)),
                    "c": c,
                    "best": c == best,
                    "against_best": round(math.exp(fmean(logs)), 4),
                    "interval": round(1.96 * standard_error(np.array(logs)), 4),
                    **{name: round(fmean(each[name] for each in group), 3) for name in shown},
                }
            )
    return rows


CUTOFF = Table("cutoff", partial(cutoffs, 4, 2000), cutoff_rows, measure=with_peak)
TABLES = (Table("preemption", grid, grid_rows), CUTOFF)
