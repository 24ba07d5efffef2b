"""What offloading KV to host memory brings where memory is short, on vLLM in virtual time.

    python bench/offloading.py
    python bench/offloading.py --json > offloading.json

vLLM's engine core with its own OffloadingConnector, whose worker is played over a link: 25 GB/s
each way, and a token's KV is as large as an 8B model's (128 KiB). KV memory holds what a full batch
needs and no more. `kept` says what is offloaded: nothing, prompts alone as vLLM does by default, or
answers, too. Host memory is ample. `greedy` without pausing is LTR's rule with LTR's swap.

Requests, predictions and memory are those of `bench/pausing.py`. Figures are fcfs / policy,
medians over seeds: larger is better; fcfs offloads nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.figures.cell import made_up_prompts
from bench.pausing import STALL_S
from bench.support.cases import CASES, RATIOS, Case, engine_of, latencies, measured_capacity, said
from lengthwise.emulate.asked import Asked
from lengthwise.emulate.driver import open_virtual_engine
from lengthwise.emulate.link import BANDWIDTH
from lengthwise.predict.baselines import PREDICTION, Foretold
from lengthwise.simulate.presets import AFFINE, parse_preset
from lengthwise.vllm.compat.offloading import CONNECTOR
from lengthwise.workload.arrivals import gamma
from lengthwise.workload.trace import Trace

Place = tuple[str, str]  # a policy, and what is offloaded

REQUESTS: Final = 1000
LOAD: Final = 1.15
WORKLOADS: Final = ("castillo", "log-normal", "azure-conversations")
MEMORY: Final = "1.0"  # of what a full batch holds
KEPT: Final = ("nothing", "prompts", "answers")
HOST_BYTES: Final = 1 << 32  # more than all requests need
LINK_GBIT_PER_S: Final = 200.0  # PCI Express 4.0
#: Bytes of a token's KV, of an 8B model and of the made-up one that virtual engines serve.
TOKEN_BYTES: Final = (131072, 512)
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
#: Each policy with what is offloaded; fcfs, which the others are compared with, first.
PLACES: Final = (
    ("fcfs", "nothing"),
    ("srpt:preemption=never", "nothing"),
    *((name, kept) for name in list(POLICIES)[2:4] for kept in KEPT),
    *(("srpt", kept) for kept in ("nothing", "answers")),
)


def connector(kept: str) -> dict[str, object] | None:
    """vLLM's `--kv-transfer-config` of an engine that keeps so much; None for nothing."""
    if kept == "nothing":
        return None
    scale = TOKEN_BYTES[1] / TOKEN_BYTES[0]
    return {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": HOST_BYTES,
            "offload_prompt_only": kept == "prompts",
            BANDWIDTH: LINK_GBIT_PER_S * scale,
        },
    }


def draw(case: Case, data: Path, seed: int) -> Iterator[tuple[Place, dict[str, float]]]:
    """The figures of one draw, by policy and by what is offloaded."""
    cost = parse_preset(AFFINE).cost
    prompts, answers = (np.maximum(each, 1).astype(np.int64) for each in case.lengths(data))
    generator = np.random.default_rng([seed, 7])
    drawn = generator.integers(len(answers), size=REQUESTS)
    held_out = answers[generator.integers(len(answers), size=REQUESTS)]
    trace = Trace(case.name, np.zeros(REQUESTS), prompts[drawn], answers[drawn], [], "synthetic")
    engine = engine_of(case.slots, trace, MEMORY)
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
    base: dict[str, float] = {}
    for name, kept in PLACES:
        settings = {**POLICIES[name], "predictor": Foretold.name, "tau_floor": None}
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
        yield (
            (name, kept),
            {
                **{figure: base[figure] / own[figure] for figure in RATIOS},
                "pauses": counters.pauses,
                "preemptions": counters.preemptions,
                "memory_preemptions": counters.memory_preemptions,
                "recomputed_tokens": counters.recomputed_tokens,
            },
        )


def rows(case: Case, data: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each policy and what is offloaded."""
    found: dict[Place, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for place, row in draw(case, data, seed):
            found.setdefault(place, []).append(row)
    for (name, kept), each in found.items():
        yield {
            "workload": case.name,
            "load": LOAD,
            "kv": MEMORY,
            "policy": name,
            "kept": kept,
            **{figure: float(f"{median(one[figure] for one in each):.4g}") for figure in each[0]},
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table: list[dict[str, Any]] = []
    for case in (case for case in CASES if case.name in WORKLOADS):
        table += rows(case, given.data, given.seeds)
        if not given.json:
            _print([row for row in table if row["workload"] == case.name])
    if given.json:
        json.dump({"rows": table}, sys.stdout, indent=2)
    return 0


def _print(some: list[dict[str, Any]]) -> None:
    print(f"\n{some[0]['workload']}, load {LOAD}, KV {MEMORY}")
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
