"""Pausing against its twin that never preempts, and against fcfs, simulated.

    python bench/pausing.py
    python bench/pausing.py --json > pausing.json
    python bench/pausing.py --predictions raw --costs a100:llama-3-8b
    python bench/pausing.py --policies srpt --kv ample --first-seed 100 --seeds 20
    python bench/pausing.py --policies srpt --preemption greedy
    python bench/pausing.py --policies srpt --guards default --json

Requests have real lengths (see --data) or log-normal ones; what is predicted of them is the true
length with log-normal noise; with `probe`, what a probe says once the prompt has been computed has
less of the same noise. `calibrated`: mean and quantiles of the length given the noisy one, as
a predictor says them that was calibrated on held-out requests. `raw`: the noisy length itself.

A load is a multiple of what the engine was measured to do: answer tokens a second in a burst of the
same requests, while any of them waits. The closed form of a full batch is the same but for
runaway answers, whose contexts a round of some minutes never sees in full: `closed_form_load`.

Guards are off but for the bound on stalls, so that the rule is seen by itself; `--guards default`
has those that a server has.

Rules are looked for on other seeds than those of the published figures, which are 0 to 10.

Figures are fcfs / policy, medians over seeds: larger is better. `longest_wait` is the mean over
requests of the larger of TTFT and the longest gap between two tokens, `worst_wait` the largest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import kendalltau

from bench.support.cases import (
    CASES,
    MEMORY,
    RATIOS,
    Case,
    engine_of,
    latencies,
    measured_capacity,
    said,
)
from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import Settings
from lengthwise.simulate.presets import AFFINE, parse_preset
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import gamma
from lengthwise.workload.trace import Trace

REQUESTS = 3000
PROBE_SIGMA = 0.44  # of a probe's
STALL_S = 10.0  # the default bound
LOADS = (0.9, 1.15)

#: By case, load and figure: what the pausing policy should reach.
FLOORS: dict[tuple[str, float], dict[str, float]] = {
    ("castillo", 1.15): {"mean": 2.4, "p99": 1.2, "ttft": 50.0, "longest_wait": 15.0},
    ("log-normal", 1.15): {"mean": 2.4, "ttft": 14.0, "longest_wait": 8.0},
    ("castillo", 0.9): {"mean": 1.02, "ttft": 4.5},
    ("log-normal", 0.9): {"mean": 1.02, "ttft": 8.0},
    ("vicuna", 0.9): {"mean": 1.02, "ttft": 4.0},
}
#: The same for one that looks at waiting requests; it keeps the mean of its twin that does not.
PEEK_FLOORS: dict[tuple[str, float], dict[str, float]] = {("vicuna", 1.15): {"mean": 2.0}}
PEEK_KEPT = 0.99
#: What of its twin's figure it has to keep.
KEPT = {"mean": 0.99, "s_per_token": 0.99, "longest_wait": 0.99, "p99": 0.97}


@dataclass(frozen=True)
class Twin:
    """A policy as it is compared: `pauses`, with a `probe`, and with that, `peeks`."""

    label: str
    discipline: dict[str, Any]
    pauses: bool = False
    probe: bool = False
    peeks: bool = False

    def guards(self, slots: int) -> dict[str, Any]:
        """The bounds on overtaking and on leads that a server has by default."""
        settings = Settings(**self.discipline, predictor="declared", pausing=self.pauses)
        return settings.bounds_for(slots)


POLICIES: tuple[Twin, ...] = (
    Twin("sjf", {"policy": "sjf"}),
    *(
        twin
        for name in ("srpt", "trail", "gittins")
        for twin in (
            Twin(f"{name}:preemption=never", {"policy": name, "preemption": "never"}),
            Twin(name, {"policy": name}),
            Twin(name, {"policy": name}, pauses=True),
            Twin(name, {"policy": name}, pauses=True, probe=True),
            Twin(name, {"policy": name}, pauses=True, probe=True, peeks=True),
        )
    ),
)


def figures(served: Simulation) -> dict[str, float]:
    """One simulation in figures."""
    requests = served.requests
    return {
        **latencies(
            requests["finish_s"] - requests["arrival_s"],
            requests["first_token_s"] - requests["arrival_s"],
            requests["longest_gap_s"],
            requests["output_tokens"],
        ),
        "swaps": float((requests["pauses"] + requests["preemptions"]).sum()),
        "paused_max": float(served.steps["paused"].max(initial=0)),
        "recomputed_tokens": float(requests["recomputed_tokens"].sum()),
    }


def rows(
    case: Case,
    data: Path,
    costs: str,
    load: float,
    memory: str,
    seeds: Sequence[int],
    raw: bool,
    policies: Sequence[Twin],
    guarded: bool,
) -> Iterator[dict[str, Any]]:
    """A row for each policy."""
    prompts, answers = case.lengths(data)
    prompts, answers = np.maximum(prompts, 1), np.maximum(answers, 1)
    cost = parse_preset(costs).cost
    found: list[list[dict[str, float]]] = [[] for _ in policies]
    taus: list[tuple[float, float]] = []
    closed: list[float] = []
    for seed in seeds:
        generator = np.random.default_rng([seed, 7])
        drawn = generator.integers(len(answers), size=REQUESTS)
        held_out = answers[generator.integers(len(answers), size=REQUESTS)]
        trace = Trace(
            case.name,
            np.zeros(REQUESTS),
            prompts[drawn].astype(np.int64),
            answers[drawn].astype(np.int64),
            [],
            "synthetic",
        )
        engine = engine_of(case.slots, trace, memory)
        rate = load * measured_capacity(trace, cost, engine)
        closed.append(rate / capacity(trace, cost, engine))
        trace = trace.with_arrivals(gamma(REQUESTS, rate, 1.0, seed))
        predictions = said(trace.output_tokens, held_out, seed, raw)
        probe = said(trace.output_tokens, held_out, seed, raw, PROBE_SIGMA)
        before, after = (
            float(kendalltau(each[:, 0], trace.output_tokens)[0]) for each in (predictions, probe)
        )
        taus.append((before, after))
        base = figures(simulate(trace, make_discipline("fcfs"), cost, engine, log_steps=True))
        for place, twin in enumerate(policies):
            discipline = make_discipline(
                **twin.discipline,
                **(twin.guards(case.slots) if guarded else {}),
                pausing=twin.pauses,
                peek=twin.peeks,
                max_stall_s=STALL_S,
            )
            served = simulate(
                trace,
                discipline,
                cost,
                engine,
                predictions=predictions,
                probe=probe if twin.probe else None,
                log_steps=True,
            )
            own = figures(served)
            found[place].append({**own, **{name: base[name] / own[name] for name in RATIOS}})
    for twin, each in zip(policies, found, strict=True):
        yield {
            "workload": case.name,
            "load": load,
            "closed_form_load": round(median(closed), 3),
            "kv": memory,
            "costs": costs,
            "policy": twin.label,
            "guards": "default" if guarded else "none",
            "pausing": twin.pauses,
            "peek": twin.peeks,
            "tau": round(median(before for before, _ in taus), 3),
            "tau_probe": round(median(after for _, after in taus), 3) if twin.probe else None,
            **{name: float(f"{median(one[name] for one in each):.4g}") for name in each[0]},
        }


def missed(table: list[dict[str, Any]]) -> Iterator[str]:
    """Floors that a pausing policy does not reach, and figures that its twin does better."""
    twins = {
        (row["workload"], row["load"], row["kv"], row["policy"]): row
        for row in table
        if row["policy"].endswith("never")
    }
    unseeing = {
        (row["workload"], row["load"], row["kv"], row["policy"]): row
        for row in table
        if row["tau_probe"] and not row["peek"]
    }
    for row in table:
        if not row["pausing"]:
            continue
        name = f"{row['workload']} at {row['load']}, KV {row['kv']}, {row['policy']}"
        name += " peek" if row["peek"] else " probe" if row["tau_probe"] else ""
        every = PEEK_FLOORS if row["peek"] else FLOORS
        bare = row["kv"] == "ample" and row["guards"] == "none"
        floors = every.get((row["workload"], row["load"]), {}) if bare else {}
        if row["peek"]:
            without = unseeing[row["workload"], row["load"], row["kv"], row["policy"]]
            if row["mean"] < PEEK_KEPT * without["mean"]:
                yield f"{name}: mean is {row['mean'] / without['mean']:.3f} of that without looks"
        for figure, floor in floors.items():
            if row[figure] < floor:
                yield f"{name}: {figure} {row[figure]:.3g}, the floor is {floor:g}"
        twin = twins[row["workload"], row["load"], row["kv"], f"{row['policy']}:preemption=never"]
        for figure, share in KEPT.items():
            if row[figure] < share * twin[figure]:
                yield f"{name}: {figure} is {row[figure] / twin[figure]:.3f} of its twin's"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--costs", default=AFFINE, help="a preset")
    parser.add_argument("--predictions", choices=("calibrated", "raw"), default="calibrated")
    parser.add_argument("--kv", default=",".join(MEMORY), help="of ample, or multiples")
    parser.add_argument("--only", help="workloads")
    parser.add_argument("--policies", help="names; of each, all forms")
    parser.add_argument("--preemption", help="who makes way where a policy pauses, as the setting")
    parser.add_argument("--guards", choices=("none", "default"), default="none")
    parser.add_argument("--seeds", type=int, default=11, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = _named(parser, "workload", given.only, [case.name for case in CASES])
    names = _named(
        parser, "policy", given.policies, [twin.discipline["policy"] for twin in POLICIES]
    )
    policies = [
        replace(twin, discipline={**twin.discipline, "preemption": given.preemption})
        if twin.pauses and given.preemption
        else twin
        for twin in POLICIES
        if twin.discipline["policy"] in names
    ]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    raw = given.predictions == "raw"
    table: list[dict[str, Any]] = []
    for case in (case for case in CASES if case.name in chosen):
        for memory in given.kv.split(","):
            for load in LOADS:
                costs, guarded = given.costs, given.guards == "default"
                found = rows(case, given.data, costs, load, memory, seeds, raw, policies, guarded)
                new = list(found)
                table += new
                if not given.json:
                    _print(new)
    gaps = list(missed(table))
    if given.json:
        json.dump({"rows": table, "missed": gaps}, sys.stdout, indent=2)
    else:
        print("\nNot reached:", *gaps, sep="\n  ")
    return 0


def _named(
    parser: argparse.ArgumentParser, what: str, text: str | None, known: Sequence[str]
) -> Sequence[str]:
    """The names in a list with commas between them; all that there are without one."""
    names = text.split(",") if text else known
    for name in names:
        if name not in known:
            every = ", ".join(dict.fromkeys(known))
            parser.error(f"unknown {what} {name!r}; there are {every}")
    return names


def _print(new: list[dict[str, Any]]) -> None:
    first = new[0]
    print(f"\n{first['workload']}, load {first['load']}, KV {first['kv']}, tau {first['tau']:.2f}")
    for row in new:
        label = row["policy"] + (" pausing" if row["pausing"] else "")
        label += " peek" if row["peek"] else " probe" if row["tau_probe"] else ""
        ratios = "  ".join(f"{name} {row[name]:.2f}" for name in RATIOS)
        print(
            f"  {label:24} {ratios}  swaps {row['swaps']:.0f}, paused {row['paused_max']:.0f}, "
            f"recomputed {row['recomputed_tokens']:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
