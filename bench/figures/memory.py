"""Admission that looks ahead, over sizes of KV memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Final

from bench.figures.cell import Cell, Traffic, simulated
from bench.figures.compared import Row
from bench.figures.policies import ENGINE, GPU
from bench.figures.sources import Sources, arriving, noisy_predictions
from bench.figures.table import Table
from lengthwise.simulate.engine import EngineSettings
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace

SHARES: Final = (0.2, 0.3, 0.5, 0.7, 1.0)  # of what a full batch takes at its peak
LOADS: Final = ("0.8", "1", "burst")
SLOTS: Final = (16, 64)
SIGMAS: Final = (0.5, 1.0)
TAUS: Final = (0.3, 0.6, 1.0)
POLICIES: Final = ("sjf", "srpt")
AHEAD: Final = 0.5  # memory_growth
_REQUESTS: Final = 1500


def peak_blocks(trace: Trace, engine: EngineSettings) -> int:
    """KV blocks that a full batch of a burst takes at its peak where there are enough."""
    ample = replace(engine, kv_blocks=None, prefix_caching=False)
    cell = Cell({}, "fcfs", Traffic(trace), GPU.cost, ample)
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    free = simulated(cell, log_steps=True).steps["free_blocks"]
    return ample.blocks(longest) - int(free.min())


def cells(sources: Sources) -> Iterator[Cell]:
    """fcfs, and each policy with and without looking ahead, at every size."""
    for slots, sigma in itertools.product(SLOTS, SIGMAS):
        trace = synthetic_trace(
            _REQUESTS, math.inf, mean_prompt=100, mean_output=200, sigma=sigma, seed=0
        )
        batch = replace(ENGINE, slots=slots)
        peak = peak_blocks(trace, batch)
        longest = -(-int((trace.prompt_tokens + trace.output_tokens).max()) // ENGINE.block_size)
        for share, load in itertools.product(SHARES, LOADS):
            engine = replace(batch, kv_blocks=max(int(share * peak), longest))
            traffic = arriving(Traffic(trace), load, GPU.cost, engine, seed=0)
            point = {"share": share, "slots": slots, "sigma": sigma, "load": load}

            def cell(
                policy: str,
                ahead: float,
                tau: float,
                tags: Row = point,
                served: Traffic = traffic,
                limits: EngineSettings = engine,
            ) -> Cell:
                predicted = noisy_predictions(served.trace, tau, seed=0)
                return Cell(
                    tags={"policy": policy, "ahead": ahead, "tau": tau, **tags},
                    spec=policy if policy == "fcfs" else f"{policy}:memory_growth={ahead}",
                    traffic=replace(served, predictions=predicted),
                    cost=GPU.cost,
                    engine=limits,
                )

            yield cell("fcfs", 0.0, 1.0)
            for policy, tau, ahead in itertools.product(POLICIES, TAUS, (0.0, AHEAD)):
                yield cell(policy, ahead, tau)


def rows(cells: Sequence[Row]) -> list[Row]:
    """One row for each policy and size of memory: the spread over all else."""
    names = ("share", "slots", "sigma", "load")
    by = {
        (cell["policy"], cell["ahead"], cell["tau"], *(cell[name] for name in names)): cell
        for cell in cells
    }
    found = []
    for policy, share in itertools.product(POLICIES, SHARES):
        group = [key for key in by if (key[0], key[1], key[3]) == (policy, AHEAD, share)]
        ours = [by[key] for key in group]
        twins = [by[policy, 0.0, *key[2:]] for key in group]
        stock = [by["fcfs", 0.0, 1.0, *key[3:]] for key in group]
        found.append(
            {
                "policy": policy,
                "share": share,
                "points": len(group),
                "stock_preemptions": sum(map(_preemptions, stock)),
                "twin_preemptions": sum(map(_preemptions, twins)),
                "preemptions": sum(map(_preemptions, ours)),
                **_gains("throughput_gain", "output_throughput", ours, twins),
                **_gains("throughput_over_stock", "output_throughput", ours, stock),
                **_gains("mean_gain", "mean_e2el_ms", twins, ours),
                **_gains("ttft_gain", "mean_ttft_ms", twins, ours),
            }
        )
        found[-1]["preemptions_over_stock"] = round(
            found[-1]["preemptions"] / max(found[-1]["stock_preemptions"], 1), 5
        )
    return found


def _preemptions(cell: Row) -> int:
    return int(cell["preemptions"] + cell["memory_preemptions"])


def _gains(name: str, figure: str, above: Sequence[Row], below: Sequence[Row]) -> Row:
    values = [a[figure] / b[figure] for a, b in zip(above, below, strict=True)]
    found = {f"{name}_worst": min(values), name: median(values), f"{name}_best": max(values)}
    return {key: round(value, 5) for key, value in found.items()}


TABLES = (Table("memory-grid", cells, rows),)
