"""What guards keep of the gain, and of the tail: simulated, against first come, first served.

    python bench/guards.py
    python bench/guards.py --json > guards.json
    python bench/guards.py --guard max_lead=60 --guard max_wait_s=15 --seeds 10,11,12
    python bench/guards.py --guard max_wait_s=1.2x

Real lengths (Vicuna-7B, see --data), 16 slots, `srpt` with predictions of Kendall tau 0.5; a step
takes 7 ms, 32 us a token and 0.04 us a token of context. Figures are fcfs / policy, medians over
seeds: larger is better. `longest_wait` is the mean over requests of the larger of TTFT and the
longest gap between two tokens, `worst_wait` the largest. `bound` is the unit that the
guard's promise is made in. The default of `max_lead` was chosen with seeds 0 to 2 and 10 to 14 in
view; others are for judging it. `1.2x` is a bound in hindsight: 1.2 times the longest wait that
fcfs brought in the same draw, which no server knows in time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import Settings, parse_spec
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.predictions import noisy
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import burst, gamma
from lengthwise.workload.dataset import Dataset, load_dataset
from lengthwise.workload.trace import Trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)
ENGINE = EngineSettings(slots=16, max_seqs=512)
REQUESTS = 2000
TAU = 0.5
LOADS = ("burst", "1.2", "1.05")
RATIOS = ("mean", "p99", "longest_wait", "worst_wait")
BARE = Settings(predictor="declared", max_overtakes=None, max_lead=None, tau_floor=None)

OURS = "max_lead=auto"
GUARDS = (
    "",
    "max_overtakes=slots",
    "max_overtakes=320",
    *(f"max_wait_s={seconds}" for seconds in (10, 20)),
    *(f"max_lead={requests}" for requests in (0, 25, 50, 200)),
    OURS,
)
BOUNDS = {"max_overtakes": "requests", "max_wait_s": "seconds", "max_lead": "work"}
#: What the default should reach.
FLOORS: dict[str, dict[str, float]] = {
    "burst": {"mean": 1.42, "p99": 0.98, "worst_wait": 0.75},
    "1.2": {"mean": 1.40, "p99": 0.90, "worst_wait": 0.75},
    "1.05": {"mean": 1.40, "p99": 0.74, "worst_wait": 0.75},
}


@functools.cache
def dataset(data: Path) -> Dataset:
    return load_dataset(data / "prompts_alpaca_vicuna7b.parquet", prompt_tokens=True)


def requests_of(data: Path, load: str, seed: int) -> Trace:
    """Requests of real lengths under a load."""
    table = dataset(data)
    assert table.prompt_tokens is not None
    rows = np.random.default_rng([seed, 7]).integers(len(table.lengths), size=REQUESTS)
    trace = Trace(
        "vicuna",
        burst(REQUESTS),
        np.maximum(np.array(table.prompt_tokens, np.int64)[rows], 1),
        np.maximum(np.array(table.lengths, np.int64)[rows], 1),
        [],
        "synthetic",
    )
    if load == "burst":
        return trace
    rate = float(load) * capacity(trace, COST, ENGINE)
    return trace.with_arrivals(gamma(REQUESTS, rate, 1.0, seed))


def figures(served: Simulation) -> dict[str, float]:
    """One simulation in figures."""
    requests = served.requests
    wait = np.maximum(served.ttft_s, requests["longest_gap_s"])
    return {
        "mean": float(served.e2el_s.mean()),
        "p99": float(np.percentile(served.e2el_s, 99)),
        "longest_wait": float(wait.mean()),
        "worst_wait": float(wait.max()),
    }


def in_hindsight(spec: str, longest_s: float) -> str:
    """A guard whose bound may be given as a multiple of the longest wait under fcfs, such as 1.2x.

    Args:
        spec: options of a policy.
        longest_s: that wait, in s.
    """
    return re.sub(r"([\d.]+)x$", lambda found: f"{float(found[1]) * longest_s:.3f}", spec)


def rows(data: Path, load: str, specs: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """A row for each guard, with pausing and without."""
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for seed in seeds:
        trace = requests_of(data, load, seed)
        base = figures(simulate(trace, make_discipline("fcfs"), COST, ENGINE))
        predictions = noisy(trace.output_tokens, TAU, seed)
        for spec, pausing in itertools.product(specs, (False, True)):
            guard = in_hindsight(spec, base["worst_wait"])
            settings = parse_spec(f"srpt:{guard}", BARE).model_copy(update={"pausing": pausing})
            discipline = make_discipline(**settings.discipline_arguments(ENGINE.slots))
            own = figures(simulate(trace, discipline, COST, ENGINE, predictions=predictions))
            found.setdefault((spec, pausing), []).append(
                {**own, **{name: base[name] / own[name] for name in RATIOS}}
            )
    for (spec, pausing), each in found.items():
        floors = FLOORS[load] if spec == OURS else {}
        figure = {name: median(one[name] for one in each) for name in each[0]}
        yield {
            "load": load,
            "guard": spec or "none",
            "pausing": pausing,
            **{name: float(f"{value:.4g}") for name, value in figure.items()},
            "bound": BOUNDS.get(spec.partition("=")[0], "none"),
            "missed": [
                f"{name} {figure[name]:.3f}, the floor is {floor}"
                for name, floor in floors.items()
                if figure[name] < floor
            ],
        }


def seeds_of(text: str) -> list[int]:
    """Seeds as they are written: 0,1,2 or 100-119."""
    ends = [part.split("-") for part in text.split(",")]
    return [seed for each in ends for seed in range(int(each[0]), int(each[-1]) + 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--guard", action="append", help="options of a policy; may be repeated")
    parser.add_argument(
        "--seeds",
        type=seeds_of,
        default="0,1,2",
        help="of arrivals, lengths and predictions, such as 0,1,2 or 100-119",
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table: list[dict[str, Any]] = []
    for load in LOADS:
        for row in rows(given.data, load, given.guard or list(GUARDS), given.seeds):
            table.append(row)
            if not given.json:
                ratios = "  ".join(f"{name} {row[name]:.2f}" for name in RATIOS)
                label = row["guard"] + (" pausing" if row["pausing"] else "")
                print(f"{load:6} {label:40} {ratios}", *row["missed"], flush=True)
    if given.json:
        json.dump({"seeds": given.seeds, "rows": table}, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
