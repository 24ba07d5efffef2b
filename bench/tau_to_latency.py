"""What is a better predictor worth? Latency against Kendall's tau, in the simulator.

    python bench/tau_to_latency.py --json > tau.json

Requests have the lengths of real answers (Vicuna-7B on Alpaca prompts; made up where the table is
missing). Each is predicted by a noisy oracle, whose ranking has the given tau and whose quantiles
are calibrated. Every tau is compared with fcfs on the same requests and arrivals.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import COST, ENGINE, VICUNA, compared, draw, show, simulate_seeds

from lengthwise.simulate.cell import Cell, Workload

LOADS = ("0.9", "1.05", "1.2", "burst")
TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POLICIES = ("sjf", "srpt")


def cells(seed: int) -> list[Cell]:
    """fcfs, and every policy with every tau."""
    found = []
    for load in LOADS:
        base = Cell(
            label="fcfs",
            discipline={"policy": "fcfs"},
            load=load,
            cost=COST,
            engine=ENGINE,
            cv=1.0,
            seed=seed,
        )
        found.append(base)
        found += [
            Cell(
                label=policy,
                discipline={"policy": policy},
                load=load,
                cost=COST,
                engine=ENGINE,
                cv=1.0,
                seed=seed,
                predictor="oracle" if tau == 1.0 else f"noisy-oracle:{tau:g}",
                tags={"tau": tau},
            )
            for policy, tau in itertools.product(POLICIES, TAUS)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", type=Path, default=VICUNA, help="prompts and lengths")
    parser.add_argument("--requests", type=int, default=2000, help="in each simulation")
    parser.add_argument("--seeds", type=int, default=5, help="of requests, arrivals and noise")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()

    def workload(seed: int) -> Workload:
        return Workload(draw(arguments.table, arguments.requests, seed))

    rows = compared(simulate_seeds(workload, cells, arguments.seeds), ("load", "tau"))
    names = ("load", "policy", "tau", "mean_s", "factor_mean", "factor_per_token", "factor_p99")
    show(rows, arguments.json, (*names, "factor_ttft"))


if __name__ == "__main__":
    main()
