"""What the policy `deadline` is worth: deadlines of first tokens that are met, and the mean.

    python bench/deadlines.py             a table
    python bench/deadlines.py --json      a list of rows

Simulated: 3,000 requests, Poisson, above the capacity of an 8B model on an A100 with 64 slots.
Three in ten have a deadline, of 1, 3 or 10 s. Predictions order answers with a Kendall tau of 0.5.
The bound on overtaking is the one that a server has by default.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

from bench.rows import print_rows
from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate import simulate
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import poisson, synthetic_trace

POLICIES: Final = ("fcfs", "srpt", "deadline")
LOAD: Final = 1.05
REQUESTS: Final = 3_000
SLOTS: Final = 64
SHARE: Final = 0.3  # of requests that have a deadline
DEADLINES_S: Final = (1.0, 3.0, 10.0)


def measurements(seed: int = 0, load: float = LOAD) -> list[dict[str, Any]]:
    """One row a policy."""
    preset = parse_preset("a100:llama-3-8b")
    engine = replace(preset.engine, slots=SLOTS)
    trace = synthetic_trace(
        REQUESTS, 1.0, mean_prompt=200, mean_output=200, sigma=1.0, seed=seed + 1
    )
    rate = load * capacity(trace, preset.cost, engine)
    trace = trace.with_arrivals(poisson(REQUESTS, rate, seed))
    predictions = trace_predictions(trace, "noisy-oracle:0.5", seed)
    generator = np.random.default_rng([seed, 1])
    has = generator.random(REQUESTS) < SHARE
    deadline_s: NDArray[np.float64] = np.where(has, generator.choice(DEADLINES_S, REQUESTS), 0.0)
    rows = []
    for policy in POLICIES:
        simulated = simulate(
            trace,
            make_discipline(policy, max_overtakes=SLOTS, overtake_share=0.5),
            preset.cost,
            engine,
            predictions=predictions,
            deadline_s=deadline_s,
        )
        rows.append(
            {
                "policy": policy,
                "seed": seed,
                "load": load,
                "met": float((simulated.ttft_s[has] <= deadline_s[has]).mean()),
                "mean_e2el_s": float(simulated.e2el_s.mean()),
                "mean_ttft_s": float(simulated.ttft_s.mean()),
                "p99_e2el_s": float(np.quantile(simulated.e2el_s, 0.99)),
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    return (
        f"{row['policy']:9} seed {row['seed']}: {row['met']:4.0%} of deadlines met, "
        f"mean latency {row['mean_e2el_s']:.2f} s, first token {row['mean_ttft_s']:.2f} s, "
        f"99 % below {row['p99_e2el_s']:.1f} s"
    )


if __name__ == "__main__":
    print_rows(__doc__, measurements, line)
