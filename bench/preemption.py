"""TRAIL's cutoff c where KV memory is scarce: a table of simulations.

    python bench/preemption.py                                  a table
    python bench/preemption.py --c 0,0.5,1,auto --json          rows

Lengths are log-normal (200 tokens of prompt and of answer on average), predictions have a Kendall
tau of 0.6, and the engine has KV blocks for about a third of what a full batch would grow to. c
says up to which share of its first prediction a running request may be preempted: 0 never, 1
always. It is shown for preemption that has to pay and for greedy preemption, as in the paper, with
freed blocks kept in the prefix cache and without one. All c serve the same requests; intervals are
over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from statistics import fmean, stdev
from typing import Any

from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.cell import Cell, arrivals_of, summary
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.simulation import simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.synthetic import synthetic_trace
from lengthwise.workload.trace import Trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6, source="affine")
SLOTS, BLOCK, MEAN, SIGMA, TAU = 32, 16, 200, 0.8, 0.6
SCARCE = 0.35  # of the blocks that a full batch of average requests would hold in the end
LOADS = ("1.05", "1.2", "burst")
MODES = ("pays", "greedy")


def scarce_engine(trace: Trace, caching: bool) -> EngineSettings:
    """An engine whose KV memory is short; the longest request still fits."""
    batch = SLOTS * float((trace.prompt_tokens + trace.output_tokens).mean())
    longest = float((trace.prompt_tokens + trace.output_tokens).max())
    return EngineSettings(
        slots=SLOTS,
        block_size=BLOCK,
        prefix_caching=caching,
        kv_blocks=math.ceil(max(SCARCE * batch, 1.1 * longest) / BLOCK),
    )


def run_one(c: float | str, mode: str, caching: bool, load: str, seed: int, n: int) -> Any:
    """One simulation in figures."""
    trace = synthetic_trace(n, 1.0, mean_prompt=MEAN, mean_output=MEAN, sigma=SIGMA, seed=seed)
    engine = scarce_engine(trace, caching)
    discipline = {"policy": "trail", "parameters": {"c": c}, "preemption": mode}
    cell = Cell(f"c={c}", discipline, load, COST, engine, cv=1.0, seed=seed)
    offered = arrivals_of(cell, trace)
    simulated = simulate(
        offered,
        make_discipline(**discipline),  # type: ignore[arg-type]
        COST,
        engine,
        predictions=trace_predictions(offered, f"noisy-oracle:{TAU}", seed),
        log_steps=True,
    )
    figures = summary(simulated)
    assert engine.kv_blocks is not None
    peak = engine.kv_blocks - int(simulated.steps["free_blocks"].min())
    return {**figures, "peak_kv": peak / engine.kv_blocks}


def run(cs: list[float | str], seeds: int, requests: int) -> list[dict[str, Any]]:
    """A row for each c in each situation; means over seeds, with 95 % intervals of the mean."""
    rows = []
    for mode, caching, load in itertools.product(MODES, (True, False), LOADS):
        figures = {
            c: [run_one(c, mode, caching, load, seed, requests) for seed in range(seeds)]
            for c in cs
        }
        means = {c: [each["mean_e2el_ms"] for each in figures[c]] for c in cs}
        fixed = [c for c in cs if c != "auto"]
        best = min(fixed, key=lambda c: fmean(means[c])) if fixed else None
        for c in cs:
            base = means[c if best is None else best]  # the best may be 0
            against = [math.log(ours / theirs) for ours, theirs in zip(means[c], base, strict=True)]
            error = 1.96 * stdev(against) / math.sqrt(seeds) if seeds > 1 else math.nan
            rows.append(
                {
                    "preemption": mode,
                    "prefix_caching": caching,
                    "load": load,
                    "c": c,
                    "best": c == best,
                    "against_best": round(math.exp(fmean(against)), 4),
                    "interval": round(error, 4),
                    **{
                        name: round(fmean(each[name] for each in figures[c]), 3)
                        for name in (
                            "mean_e2el_ms",
                            "p95_e2el_ms",
                            "p99_e2el_ms",
                            "recomputed_tokens",
                            "preemptions",
                            "memory_preemptions",
                            "peak_kv",
                        )
                    },
                }
            )
            print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row as a line of text."""
    cache = "kept" if row["prefix_caching"] else "lost"
    return (
        f"{row['preemption']:<6} {cache:<4} {row['load']:>5} c={row['c']!s:<5}"
        f" mean {row['mean_e2el_ms'] / 1e3:7.2f} s  p95 {row['p95_e2el_ms'] / 1e3:7.2f}"
        f"  p99 {row['p99_e2el_ms'] / 1e3:7.2f}  recomputed {row['recomputed_tokens']:>9,.0f}"
        f"  peak KV {row['peak_kv']:4.0%}"
        f"  to best {row['against_best']:.3f} ± {row['interval']:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print rows on stdout")
    parser.add_argument("--c", default="0,0.2,0.5,0.8,1,auto", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=3000, help="default: %(default)s")
    arguments = parser.parse_args()
    cs: list[float | str] = [c if c == "auto" else float(c) for c in arguments.c.split(",")]
    rows = run(cs, arguments.seeds, arguments.requests)
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
