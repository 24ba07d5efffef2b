"""What offloading KV to host memory brings where memory is short, on vLLM in virtual time.

    python bench/offloading.py
    python bench/offloading.py --json > offloading.json

vLLM's engine core with its own OffloadingConnector, whose worker is played over a link: 25 GB/s
each way, and a token's KV is as large as an 8B model's (128 KiB). KV memory holds what a full batch
needs and no more. `kept` says what is offloaded: nothing, prompts alone as vLLM does by default, or
answers, too. Host memory is ample. `greedy` without pausing is LTR's rule with LTR's swap. With
asynchronous scheduling, vLLM's default, no blocks of a request in flight are let go.

Requests, predictions and memory are those of `bench/pausing.py`, and as there guards are off except
for the bound on stalls. Figures are fcfs / policy, medians over seeds: larger is better; fcfs
offloads nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.figures.cell import made_up_prompts
from bench.pausing import STALL_S
from bench.support.cases import CASES, RATIOS, engine_of, latencies, measured_capacity, said
from lengthwise.emulate.driver import Asked, host_memory, open_virtual_engine
from lengthwise.predict.load import PREDICTION, Foretold
from lengthwise.simulate.presets import AFFINE, MODELS, parse_preset
from lengthwise.workload.arrivals import gamma
from lengthwise.workload.trace import Trace

Place = tuple[str, str]  # a policy, and what is offloaded
Row = dict[str, Any]

REQUESTS: Final = 1000
LOAD: Final = 1.15
WORKLOADS: Final = ("log-normal", "azure-conversations")  # where memory for a batch is short
MEMORY: Final = "1.0"  # of what a full batch holds
KEPT: Final = ("nothing", "prompts", "answers")
HOST_BYTES: Final = 1 << 40  # more than all requests need
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "fcfs": {"policy": "fcfs"},
    "srpt:preemption=never": {"policy": "srpt", "preemption": "never"},
    "srpt:pausing=false": {"policy": "srpt", "pausing": False},
    "srpt:pausing=false;preemption=greedy": {
        "policy": "srpt",
        "pausing": False,
        "preemption": "greedy",
    },
    "srpt": {"policy": "srpt", "pausing": True, "max_stall_s": STALL_S},
}
UNGUARDED: Final = {"max_overtakes": None, "max_lead": None}
#: Each policy with what is offloaded, by steps of lag, of which asynchronous scheduling has one;
#: fcfs, which the others are compared with, first.
PLACES: Final[dict[int, tuple[Place, ...]]] = {
    0: (
        ("fcfs", "nothing"),
        ("srpt:preemption=never", "nothing"),
        *(("srpt:pausing=false", kept) for kept in KEPT),
        ("srpt:pausing=false;preemption=greedy", "answers"),
        *(("srpt", kept) for kept in KEPT),
    ),
    1: (
        ("fcfs", "nothing"),
        ("srpt:preemption=never", "nothing"),
        ("srpt:pausing=false", "answers"),
        *(("srpt", kept) for kept in ("nothing", "answers")),
    ),
}


def connector(kept: str) -> dict[str, object] | None:
    """vLLM's `--kv-transfer-config` of an engine that keeps so much; None for nothing."""
    if kept == "nothing":
        return None
    return host_memory(HOST_BYTES, MODELS["llama-3-8b"].kv_bytes(), answers=kept == "answers")


def draw(workload: str, data: Path, seed: int, lag: int) -> dict[Place, dict[str, float]]:
    """The figures of one draw, by policy and by what is offloaded."""
    (case,) = (each for each in CASES if each.name == workload)
    cost = parse_preset(AFFINE).cost
    prompts, answers = (np.maximum(each, 1).astype(np.int64) for each in case.lengths(data))
    generator = np.random.default_rng([seed, 7])
    drawn = generator.integers(len(answers), size=REQUESTS)
    held_out = answers[generator.integers(len(answers), size=REQUESTS)]
    trace = Trace(case.name, np.zeros(REQUESTS), prompts[drawn], answers[drawn], [], "synthetic")
    engine = replace(engine_of(case.slots, trace, MEMORY), lag=lag)
    rate = LOAD * measured_capacity(trace, cost, engine)
    trace = trace.with_arrivals(gamma(REQUESTS, rate, 1.0, seed))
    predictions = said(trace.output_tokens, held_out, seed, raw=False)
    asked = [
        Asked(prompt, int(tokens), float(arrival_s), hints={PREDICTION: prediction.tolist()})
        for prompt, tokens, arrival_s, prediction in zip(
            made_up_prompts(trace), trace.output_tokens, trace.arrival_s, predictions, strict=True
        )
    ]
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    found: dict[Place, dict[str, float]] = {}
    base: dict[str, float] = {}
    for name, kept in PLACES[lag]:
        settings = {**POLICIES[name], **UNGUARDED, "predictor": Foretold.name, "tau_floor": None}
        with open_virtual_engine(
            cost, engine, longest=longest, settings=settings, connector=connector(kept)
        ) as virtual:
            served = virtual.run(asked)
            counters = virtual.scheduler.counters
        own = latencies(
            np.array([one.finish_s - one.sent_s for one in served]),
            np.array([one.first_token_s - one.sent_s for one in served]),
            np.array([np.diff(one.token_s).max(initial=0.0) for one in served]),
            trace.output_tokens,
        )
        base = base or own
        found[name, kept] = {
            **{figure: base[figure] / own[figure] for figure in RATIOS},
            "pauses": counters.pauses,
            "preemptions": counters.preemptions,
            "memory_preemptions": counters.memory_preemptions,
            "recomputed_tokens": counters.recomputed_tokens,
        }
    return found


def rows(name: str, lag: int, draws: list[dict[Place, dict[str, float]]]) -> Iterator[Row]:
    """A row for each policy and what is offloaded."""
    for policy, kept in PLACES[lag]:
        each = [found[policy, kept] for found in draws]
        yield {
            "workload": name,
            "load": LOAD,
            "kv": MEMORY,
            "asynchronous": lag > 0,
            "policy": policy,
            "kept": kept,
            **{figure: float(f"{median(one[figure] for one in each):.4g}") for figure in each[0]},
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table: list[Row] = []
    # An engine each: a fork would share what one has compiled and opened.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        drawn = {
            (name, lag): [
                pool.submit(draw, name, given.data, seed, lag) for seed in range(given.seeds)
            ]
            for name, lag in itertools.product(WORKLOADS, PLACES)
        }
        for (name, lag), each in drawn.items():
            some = list(rows(name, lag, [one.result() for one in each]))
            table += some
            if not given.json:
                _print(some)
    if given.json:
        json.dump({"rows": table}, sys.stdout, indent=2)
    return 0


def _print(some: list[Row]) -> None:
    scheduling = "asynchronous" if some[0]["asynchronous"] else "synchronous"
    print(f"\n{some[0]['workload']}, load {LOAD}, KV {MEMORY}, {scheduling}")
    for row in some:
        ratios = "  ".join(f"{name} {row[name]:.3f}" for name in RATIOS)
        preempted = row["preemptions"] + row["memory_preemptions"]
        print(
            f"  {row['policy']:38} {row['kept']:8} {ratios}  pauses {row['pauses']:.0f}, "
            f"preempted {preempted:.0f}, recomputed {row['recomputed_tokens']:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
