"""How fast the simulator is: requests in log-normal lengths, one core.

    python bench/simulator_speed.py --requests 1000000 --json

Each policy runs in a process of its own, so that its peak memory is its own, with the guard against
overtaking on and every request's record kept. Compiling is timed apart: `compile_seconds` is what
the first call cost beyond a later one, `compile_seconds_uncached` the same with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

POLICIES = ("fcfs", "srpt")
SLOTS = 256


def measure(policy: str, requests: int, load: float, repeats: int, caching: bool) -> dict[str, Any]:
    """Time one policy in this process."""
    from lengthwise.advise.sweep import capacity
    from lengthwise.policy.discipline import make_discipline
    from lengthwise.simulate.engine import EngineSettings, StepCost
    from lengthwise.simulate.predictions import trace_predictions
    from lengthwise.simulate.simulation import simulate
    from lengthwise.workload.arrivals import synthetic_trace

    cost = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6, source="affine")
    engine = EngineSettings(slots=SLOTS, kv_blocks=25_000, prefix_caching=caching)
    sample = synthetic_trace(20_000, 1.0, mean_prompt=200, mean_output=200, sigma=0.8, seed=1)
    rate = load * capacity(sample, cost, engine)

    def lengths(count: int) -> Any:
        return synthetic_trace(count, rate, mean_prompt=200, mean_output=200, sigma=0.8, seed=0)

    bound = None if policy == "fcfs" else 5 * SLOTS
    discipline = make_discipline(policy, max_overtakes=bound)

    def run(count: int) -> tuple[float, Any]:
        trace = lengths(count)
        predictions = trace_predictions(trace, "noisy-oracle:0.5")
        start = time.perf_counter()
        result = simulate(trace, discipline, cost, engine, predictions=predictions)
        return time.perf_counter() - start, result

    first, _ = run(100)
    second, _ = run(100)
    timed = [run(requests) for _ in range(repeats)]
    seconds = median(taken for taken, _ in timed)
    result = timed[-1][1]
    return {
        "policy": policy,
        "requests": requests,
        "load": load,
        "prefix_caching": caching,
        "seconds": seconds,
        "seconds_low": min(taken for taken, _ in timed),
        "seconds_high": max(taken for taken, _ in timed),
        "compile_seconds": first - second,
        "requests_per_s": requests / seconds,
        "steps": result.step_count,
        "sequence_steps_per_s": result.output_tokens / seconds,
        "mean_e2el_ms": 1000 * float(result.e2el_s.mean()),
        "preemptions": int(result.requests["preemptions"].sum()),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(arguments: argparse.Namespace, policy: str, cache: str | None) -> dict[str, Any]:
    """`measure` in a fresh process, with numba's cache in a folder of its own if one is given."""
    command = [
        sys.executable,
        __file__,
        "--policy",
        policy,
        "--here",
        "--load",
        str(arguments.load),
    ]
    count = arguments.requests if cache is None else 100
    command += [
        "--requests",
        str(count),
        "--repeats",
        str(arguments.repeats if cache is None else 1),
    ]
    command += ["--no-prefix-caching"] * (not arguments.prefix_caching)
    environment = {**os.environ, **({} if cache is None else {"NUMBA_CACHE_DIR": cache})}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(finished.stdout)
    return row


def main() -> None:
    """Measure all policies and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--uncached", action="store_true", help="time an empty cache as well")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    policies = arguments.policy or list(POLICIES)
    if arguments.here:
        caching = arguments.prefix_caching
        row = measure(policies[0], arguments.requests, arguments.load, arguments.repeats, caching)
        print(json.dumps(row))
        return
    rows = []
    for policy in policies:
        row = in_a_process(arguments, policy, None)
        if arguments.uncached:
            with tempfile.TemporaryDirectory() as cache:
                uncached = in_a_process(arguments, policy, cache)["compile_seconds"]
            row["compile_seconds_uncached"] = uncached
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['policy']}: {row['requests']:,} requests in {row['seconds']:.2f} s, "
            f"{row['sequence_steps_per_s'] / 1e6:.0f} million sequence-steps/s, "
            f"{row['peak_rss_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
