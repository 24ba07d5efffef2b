"""How the gain grows with the number of replicas, and what it costs to decide.

    python bench/replicas.py             a table
    python bench/replicas.py --json      a list of rows

Simulated: engines of an 8B model on an A100 with four slots each, a load of 0.9, log-normal answers
(mean 150 tokens, sigma 1.5), predictions with a Kendall tau of 0.5. Six ways to choose a replica,
in front of engines that serve in the order of arrival (fcfs) or by predicted length (srpt). One
router knows all; or sixteen routers take turns, and each knows what it has sent itself, and of the
others' requests what was so `stale_s` seconds ago, at most. With old news whoever seemed the least
loaded is chosen by all of them at once: they herd.

`decide_us` is measured: what one decision, its booking and its release take a router of Ray Serve
with so many replicas, each of which has all its slots taken and half as many requests waiting, for
a prompt of 2,000 characters that one of them has seen. The prediction itself comes before it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.rows import print_rows
from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import ROUTERS
from lengthwise.route.bookings import Bookings, Prefixes
from lengthwise.simulate import simulate
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import poisson, synthetic_trace

REPLICAS: Final = (2, 8, 64, 512)
POLICIES: Final = ("fcfs", "srpt")
NEWS: Final = ((1, 0.0), (16, 5.0))  # routers, and how old their news may be, s
LOAD: Final = 0.9
SLOTS: Final = 4
EACH: Final = 60  # requests a replica
LEAST: Final = 3_000  # of all
DECISIONS: Final = 200


def measurements(seed: int = 0) -> list[dict[str, Any]]:
    """One row for each number of replicas, policy, news and router."""
    return [row for count in REPLICAS for row in _rows(count, seed)]


def _rows(count: int, seed: int) -> list[dict[str, Any]]:
    preset = parse_preset("a100:llama-3-8b")
    engine = replace(preset.engine, slots=SLOTS)
    requests = max(EACH * count, LEAST)
    trace = synthetic_trace(
        requests, 1.0, mean_prompt=100, mean_output=150, sigma=1.5, seed=seed + 1
    )
    rate = LOAD * count * capacity(trace, preset.cost, engine)
    trace = trace.with_arrivals(poisson(requests, rate, seed))
    predictions = trace_predictions(trace, "noisy-oracle:0.5", seed)
    decide_us = decision_us(count, seed)
    rows: list[dict[str, Any]] = []
    for policy in POLICIES:
        for routers, stale_s in NEWS:
            means: dict[str, float] = {}
            for router in ROUTERS:
                served = simulate(
                    trace,
                    make_discipline(policy),
                    preset.cost,
                    engine,
                    predictions=predictions,
                    replicas=count,
                    router=router,
                    routers=routers,
                    stale_s=stale_s,
                    seed=seed,
                )
                means[router] = float(served.e2el_s.mean())
                rows.append(
                    {
                        "replicas": count,
                        "policy": policy,
                        "routers": routers,
                        "stale_s": stale_s,
                        "router": router,
                        "seed": seed,
                        "requests": requests,
                        "mean_e2el_s": means[router],
                        "p99_e2el_s": float(np.quantile(served.e2el_s, 0.99)),
                        "decide_us": decide_us if router == "predicted-wait" else None,
                    }
                )
            for row in rows[-len(ROUTERS) :]:
                row["over_power_of_two"] = row["mean_e2el_s"] / means["power-of-two"]
    return rows


def decision_us(count: int, seed: int = 0) -> float:
    """The median time of one decision with its booking and its release, in µs."""
    random = np.random.default_rng(seed)
    books = Bookings(SLOTS, shortest_first=True)
    books.use(dict.fromkeys(range(count), 1_000), 0.0)
    prefixes = Prefixes()
    prompts = [f"{k:>1000}" * 2 for k in range(count)]
    for k, prompt in enumerate(prompts):
        prefixes.add(prompt, books.row(k))
    for k in range(count):
        for place in range(SLOTS + SLOTS // 2):
            books.book(f"{k}-{place}", k, float(random.lognormal(4.0, 1.5)), 0.0)
    took = []
    for each in range(DECISIONS):
        expected, began = float(random.lognormal(4.0, 1.5)), time.perf_counter()
        saved_s = 5e-5 * prefixes.seen_tokens(prompts[each % count], books.rows)
        chosen = books.choose(expected, 1.0, saved_s=saved_s)
        assert chosen is not None
        books.book("new", chosen, expected, 1.0)
        books.release("new", 1.0)
        if each > 0:  # what is compiled, is compiled by then
            took.append(time.perf_counter() - began)
    return 1e6 * float(np.median(took))


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    news = "all known" if row["routers"] == 1 else f"news {row['stale_s']:g} s old"
    decides = "" if row["decide_us"] is None else f", decided in {row['decide_us']:.0f} µs"
    return (
        f"{row['replicas']:>3} replicas, {row['policy']}, {news}, {row['router']}: "
        f"{row['mean_e2el_s']:.2f} s, {row['over_power_of_two']:.2f} of power of two{decides}"
    )


if __name__ == "__main__":
    print_rows(__doc__, measurements, line)
