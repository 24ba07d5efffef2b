"""Guards against starvation side by side: LTR's promotion and bounded overtaking, simulated.

    python bench/starvation.py --json > starvation.json

Requests have the lengths of real answers; predictions a tau of 0.5. `bound` is how many later
arrivals can get a slot before a request does, where that is proved: K + slots - 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import COST, ENGINE, VICUNA, compared, draw, show, simulate_seeds

from lengthwise.simulate.cell import Cell, Workload

LOADS = ("1.05", "1.2", "burst")
POLICY = "srpt"
GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "promotion, N = 200, M = 10": {"starvation_threshold": 200, "starvation_quantum": 10},
    "promotion, N = 1000, M = 10": {"starvation_threshold": 1000, "starvation_quantum": 10},
    "promotion, N = 4000, M = 10": {"starvation_threshold": 4000, "starvation_quantum": 10},
    "overtaking, K = 1 x slots": {"max_overtakes": ENGINE.slots},
    "overtaking, K = 1 x slots + w / 4": {"max_overtakes": ENGINE.slots, "overtake_share": 0.25},
    "overtaking, K = 1 x slots + w / 2": {"max_overtakes": ENGINE.slots, "overtake_share": 0.5},
    "overtaking, K = 1 x slots + w": {"max_overtakes": ENGINE.slots, "overtake_share": 1.0},
    "overtaking, K = 5 x slots": {"max_overtakes": 5 * ENGINE.slots},
    "overtaking, K = 20 x slots": {"max_overtakes": 20 * ENGINE.slots},
    "waiting, 10 s": {"max_wait_s": 10.0},
    "waiting, 60 s": {"max_wait_s": 60.0},
    "blend, 0.9": {"blend": 0.9},
}


def cells(seed: int) -> list[Cell]:
    """fcfs, and the policy with every guard."""
    disciplines = {"fcfs": {"policy": "fcfs"}} | {
        guard: {"policy": POLICY, **settings} for guard, settings in GUARDS.items()
    }
    return [
        Cell(
            label=label,
            discipline=discipline,
            load=load,
            cost=COST,
            engine=ENGINE,
            cv=1.0,
            seed=seed,
            predictor="noisy-oracle:0.5",
        )
        for load in LOADS
        for label, discipline in disciplines.items()
    ]


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

    rows = compared(simulate_seeds(workload, cells, arguments.seeds), ("load",))
    for row in rows:
        guard = GUARDS.get(row["policy"], {})
        fixed = "max_overtakes" in guard and "overtake_share" not in guard  # else one a request
        row["bound"] = guard["max_overtakes"] + ENGINE.slots - 1 if fixed else None
    names = ("load", "policy", "mean_s", "factor_mean", "factor_p99", "factor_max_wait")
    show(rows, arguments.json, (*names, "max_overtaken", "bound"))


if __name__ == "__main__":
    main()
