"""What the benches that simulate share: requests with real lengths, seeds, medians and spreads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench.spread import spread

from lengthwise.simulate.cell import Cell, Workload
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.simulate.sweep import run_sweep
from lengthwise.workload.synthetic import synthetic_trace
from lengthwise.workload.table import read_table
from lengthwise.workload.trace import Trace

DATA = Path(__file__).parents[2] / "shared" / "data"
VICUNA = DATA / "prompts_alpaca_vicuna7b.parquet"

#: An affine engine of shared measurements: 7 ms a step, 32 µs a token, 0.04 µs a token of context.
COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6, source="affine")
ENGINE = EngineSettings(slots=16)

#: What is reported: our short name, and the figure of a simulation.
METRICS = {
    "mean": "mean_e2el_ms",
    "per_token": "mean_latency_per_output_token_ms",
    "ttft": "mean_ttft_ms",
    "p99": "p99_e2el_ms",
    "max_wait": "max_max_waiting_time_ms",
}
Row = dict[str, Any]


def draw(path: Path, count: int, seed: int) -> Trace:
    """Requests drawn at random from a table of prompts, to arrive as a cell says.

    Where the table is missing lengths are log-normal with about the same means.
    """
    if not path.is_file():
        return synthetic_trace(count, np.inf, mean_prompt=40, mean_output=125, sigma=0.8, seed=seed)
    table = read_table(path)
    rows = np.random.default_rng(seed).integers(len(table.numbers), size=count)
    prompts, answers = (
        np.array(table.column(name), np.int64)[rows]
        for name in ("prompt_tokens", "response_tokens")
    )
    return Trace(
        name=path.stem,
        arrival_s=np.zeros(count),
        prompt_tokens=np.maximum(prompts, 1),
        output_tokens=np.maximum(answers, 1),
        rejected=[],
        layout="prompts",
    )


def simulate_seeds(
    workload: Callable[[int], Workload], cells: Callable[[int], Sequence[Cell]], seeds: int
) -> list[Row]:
    """The figures of all cells with every seed."""
    rows: list[Row] = []
    for seed in range(seeds):
        # In this process: a sweep's workers would take longer to start than to simulate.
        rows += run_sweep(cells(seed), workload(seed), jobs=1)
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    return rows


def compared(rows: Sequence[Row], names: Sequence[str], baseline: str = "fcfs") -> list[Row]:
    """One row for each policy and value of `names`: medians over the seeds.

    Beside each figure in seconds, `<metric>_s`, stands how many times lower it is than the
    baseline's with the same seed, `factor_<metric>`, with the smallest and the largest.
    """
    base = {
        (row["load"], row["seed"], row.get("workload")): row
        for row in rows
        if row["policy"] == baseline
    }
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["policy"], *(row.get(name) for name in names)), []).append(row)
    found = []
    for key, group in groups.items():
        merged: Row = dict(zip(("policy", *names), key, strict=True))
        for metric, figure in METRICS.items():
            merged[f"{metric}_s"] = median(row[figure] for row in group) / 1000.0
            factor = f"factor_{metric}"
            factors = [
                {factor: base[row["load"], row["seed"], row.get("workload")][figure] / row[figure]}
                for row in group
            ]
            merged |= spread(factors, [factor])
        for count in ("preemptions", "memory_preemptions", "max_overtaken"):
            merged[count] = max(row[count] for row in group)
        merged["seeds"] = len(group)
        found.append(merged)
    return found


def show(rows: Sequence[Mapping[str, Any]], as_json: bool, names: Sequence[str]) -> None:
    """Print the rows, as JSON or as a plain table of some of their columns."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    lines = [list(names)]
    for row in rows:
        cells = [row.get(name) for name in names]
        lines.append([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
