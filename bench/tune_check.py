"""The choice of `lengthwise tune` beside the best of its whole grid, on seeds that it never saw.

    python bench/tune_check.py ../shared/data/trace_azure2023_conv.parquet --load 0.9 \
        --objective p50-e2el --cap p99-e2el=1.1 --json

Feasible is what keeps every cap with every unseen seed. The bar: the choice is feasible, and its
gain is at least 0.95 of the best feasible one's. With --cells an interrupted search goes on where
it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

BAR = 0.95
UNSEEN = 1_000_000  # where unseen seeds begin, far from those of the tuner


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tune, search the grid, compare."""
    from lengthwise.advise.sweep import Cell, Workload, arrivals_of, run_sweep
    from lengthwise.advise.tune import Candidate, gain, grid, parse_caps, require_objective, tune
    from lengthwise.compare.simulated import choose_machine
    from lengthwise.measure.metrics import parse_objectives
    from lengthwise.workload.trace import load_trace

    objective = require_objective(arguments.objective)
    caps = parse_caps(arguments.cap)
    limits = {"slots": arguments.slots, "kv_blocks": arguments.kv_blocks}
    machine = choose_machine(cost=None, model=arguments.model, gpu=arguments.gpu, given=limits)
    base = Cell(
        label="",
        discipline={},
        load=arguments.load,
        cost=machine.cost,
        engine=machine.engine,
        predictor=arguments.predictor,
        objectives=parse_objectives(arguments.slo),
    )
    trace = load_trace(arguments.trace, limit=arguments.requests)
    started = time.perf_counter()
    tuned = tune(Workload(trace), base, objective, caps, done=_say("tune"))
    tune_seconds = time.perf_counter() - started

    workload = Workload(arrivals_of(base, trace))
    every = [Candidate("fcfs"), *grid(machine.engine.slots, caps)]
    seeds = range(UNSEEN, UNSEEN + arguments.seeds)
    cells = [
        replace(base, label=each.label, discipline=each.discipline, seed=seed, load="trace")
        for each, seed in itertools.product(every, seeds)
    ]
    started = time.perf_counter()
    rows = run_sweep(cells, workload, results=arguments.cells, done=_say("grid"))
    grid_seconds = time.perf_counter() - started

    fcfs, gains, feasible = rows[: len(seeds)], {}, set[str]()
    for place, each in enumerate(every):
        own = rows[place * len(seeds) : (place + 1) * len(seeds)]
        pairs = list(zip(own, fcfs, strict=True))
        gains[each.label] = sum(gain(objective, *pair) for pair in pairs) / len(pairs)
        if all(cap.measured(*pair) <= cap.limit for cap in caps for pair in pairs):
            feasible.add(each.label)
    # Where not even fcfs keeps an absolute cap there is nothing to be near to.
    best = max(feasible, key=lambda label: gains[label], default=None)
    chosen = tuned.chosen.candidate.label
    share = gains[chosen] / gains[best] if best is not None else math.nan
    return {
        "trace": trace.name,
        "requests": len(trace),
        "load": arguments.load,
        "slots": machine.engine.slots,
        "objective": objective,
        "caps": {cap.metric: cap.limit for cap in caps},
        "chosen": chosen,
        "reason": tuned.reason or None,
        "chosen_gain": gains[chosen],
        "chosen_feasible": chosen in feasible,
        "best_feasible": best,
        "best_gain": gains[best] if best is not None else None,
        "share_of_best": share if math.isfinite(share) else None,
        "passed": bool(chosen in feasible and share >= BAR),
        "unseen_seeds": len(seeds),
        "simulations_tune": tuned.simulations,
        "simulations_grid": len(cells),
        "seconds_tune": tune_seconds,
        "seconds_grid": grid_seconds,
    }


def _say(what: str) -> Any:
    """Progress on stderr, now and then."""

    def done(finished: int) -> None:
        if finished % 50 == 0:
            print(f"{what}: {finished}", file=sys.stderr, flush=True)

    return done


def main() -> None:
    """Check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--load", default="trace")
    parser.add_argument("--objective", default="mean-e2el")
    parser.add_argument("--cap", action="append", default=[])
    parser.add_argument("--slo", action="append", default=[])
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--kv-blocks", type=int)
    parser.add_argument("--predictor", default="noisy-oracle:0.5")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=Path, help="file that keeps the grid's finished cells")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = check(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"chosen {result['chosen']}: {result['chosen_gain']:.3f}, best feasible "
            f"{result['best_feasible']}: {result['best_gain'] or math.nan:.3f}, "
            f"{'passed' if result['passed'] else 'failed'}"
        )
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
