"""What the guard `max_tenant_lead` is worth: one tenant floods the queue, others ask now and then.

    python bench/tenants.py             a table
    python bench/tenants.py --json      a list of rows

Simulated: an 8B model on an A100 with 64 slots, policy `srpt`, predictions with a Kendall tau of
0.5. The flood is 2,000 requests of one tenant at once; four others send 500 between them meanwhile,
at four tenths of what the engine can serve. The bound on overtaking is the one that a server has by
default.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.rows import print_rows
from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate import simulate
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import poisson, synthetic_trace

LEADS: Final = (None, 20_000, 0)  # tokens of service
FLOOD: Final = 2_000  # requests
LIGHT: Final = 500
TENANTS: Final = 4  # that send them
LOAD: Final = 0.4
SLOTS: Final = 64


def measurements(seed: int = 0) -> list[dict[str, Any]]:
    """One row a cap."""
    preset = parse_preset("a100:llama-3-8b")
    engine = replace(preset.engine, slots=SLOTS)
    trace = synthetic_trace(
        FLOOD + LIGHT, 1.0, mean_prompt=200, mean_output=200, sigma=1.0, seed=seed + 1
    )
    rate = LOAD * capacity(trace, preset.cost, engine)
    arrival_s = np.concatenate([np.zeros(FLOOD), poisson(LIGHT, rate, seed)])
    predictions = trace_predictions(trace, "noisy-oracle:0.5", seed)
    trace = trace.with_arrivals(arrival_s)
    tenants = np.zeros(len(trace), np.int64)
    tenants[FLOOD:] = 1 + np.random.default_rng([seed, 1]).integers(TENANTS, size=LIGHT)
    light = tenants > 0
    rows = []
    for lead in LEADS:
        simulated = simulate(
            trace,
            make_discipline("srpt", max_overtakes=SLOTS, overtake_share=0.5, max_tenant_lead=lead),
            preset.cost,
            engine,
            predictions=predictions,
            tenant=tenants,
        )
        rows.append(
            {
                "policy": "srpt",
                "seed": seed,
                "max_tenant_lead": lead,
                "light_ttft_s": float(simulated.ttft_s[light].mean()),
                "light_p99_ttft_s": float(np.quantile(simulated.ttft_s[light], 0.99)),
                "flood_ttft_s": float(simulated.ttft_s[~light].mean()),
                "mean_e2el_s": float(simulated.e2el_s.mean()),
                "makespan_s": simulated.makespan_s,
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    lead = "off" if row["max_tenant_lead"] is None else f"{row['max_tenant_lead']:,}"
    return (
        f"max_tenant_lead {lead:>6}, seed {row['seed']}: first token of the others after "
        f"{row['light_ttft_s']:.2f} s (99 % below {row['light_p99_ttft_s']:.1f} s), of the "
        f"flood {row['flood_ttft_s']:.1f} s; mean latency {row['mean_e2el_s']:.1f} s"
    )


if __name__ == "__main__":
    print_rows(__doc__, measurements, line)
