"""Pausing against its twin that never preempts, and against fcfs, simulated.

    python bench/pausing.py
    python bench/pausing.py --json > pausing.json
    python bench/pausing.py --predictions raw --costs a100:llama-3-8b
    python bench/pausing.py --policies srpt --kv ample --first-seed 100 --seeds 20
    python bench/pausing.py --policies srpt --preemption greedy

Requests have real lengths (see --data) or log-normal ones; what is predicted of them is the true
length with log-normal noise; with `probe`, what a probe says once the prompt has been computed has
less of the same noise. `calibrated`: mean and quantiles of the length given the noisy one, as
a predictor says them that was calibrated on held-out requests. `raw`: the noisy length itself.

A load is a multiple of what the engine was measured to do: answer tokens a second in a burst of the
same requests, while any of them waits. The closed form of a full batch is the same but for
runaway answers, whose contexts a round of some minutes never sees in full: `closed_form_load`.

Rules are looked for on other seeds than those of the published figures, which are 0 to 10.

Figures are fcfs / policy, medians over seeds: larger is better. `longest_wait` is the mean over
requests of the larger of TTFT and the longest gap between two tokens, `worst_wait` the largest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import kendalltau

from lengthwise.advise.cell import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.presets import AFFINE, parse_preset
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.arrivals import gamma
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.load_trace import load_trace
from lengthwise.workload.trace import Trace

REQUESTS = 3000
SIGMA = 1.1  # of the predictions' noise
PROBE_SIGMA = 0.44  # of a probe's
PLACES = 512  # in the worker
STALL_S = 10.0  # the default bound
RATIOS = ("mean", "p99", "s_per_token", "ttft", "longest_wait", "worst_wait")

Lengths = tuple[NDArray[np.int64], NDArray[np.int64]]  # of prompts and answers
Noise = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Requests of a kind: how many run at once, and which loads are asked for."""

    name: str
    slots: int
    lengths: Callable[[Path], Lengths]


def _prompts(file: str, **where: str) -> Callable[[Path], Lengths]:
    def read(data: Path) -> Lengths:
        table = load_dataset(data / file, where=where or None, prompt_tokens=True)
        assert table.prompt_tokens is not None
        return np.array(table.prompt_tokens), np.array(table.lengths)

    return read


def _trace(file: str) -> Callable[[Path], Lengths]:
    def read(data: Path) -> Lengths:
        trace = load_trace(data / file)
        return trace.prompt_tokens, trace.output_tokens

    return read


def _log_normal(data: Path) -> Lengths:
    """σ 1.4, mean about 650, at most 8,000 tokens."""
    answers = np.random.default_rng(1).lognormal(np.log(650) - 0.93, 1.4, 20_000)
    return np.full(len(answers), 200), np.clip(answers, 1, 8000).astype(np.int64)


CASES = (
    Case(
        "castillo",
        64,
        _prompts("prompts_castillo.parquet", model="meta-llama/Llama-3.1-8B-Instruct"),
    ),
    Case("log-normal", 64, _log_normal),
    Case("vicuna", 32, _prompts("prompts_alpaca_vicuna7b.parquet")),
    Case("azure-conversations", 64, _trace("trace_azure2023_conv.parquet")),
    Case("azure-code", 64, _trace("trace_azure2023_code.parquet")),
)
LOADS = (0.9, 1.15)
MEMORY = ("ample", "1.5", "1.0")  # KV blocks, as a multiple of what a full batch holds

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


def said(
    answers: NDArray[np.int64],
    held_out: NDArray[np.int64],
    seed: int,
    raw: bool,
    sigma: float = SIGMA,
) -> Noise:
    """Score, expected, low, median and high of noisy predictions, shape [n, 5].

    The noise of a smaller `sigma` is a part of that of SIGMA: a probe sees the prompt, too.
    """
    noise = np.random.default_rng([seed, 11]).standard_normal(len(answers))
    own = np.random.default_rng([seed, 12]).standard_normal(len(answers))
    part = min(sigma / SIGMA, 1.0)
    score = np.log(answers) + sigma * (part * noise + np.sqrt(1.0 - part**2) * own)
    if raw:
        noisy, spread = np.exp(score), np.exp(float(ndtri(0.9)) * sigma)
        return np.stack([score, noisy, noisy / spread, noisy, noisy * spread], axis=1)
    lengths = np.sort(held_out).astype(np.float64)
    distance = (score[:, None] - np.log(lengths)) / sigma
    weight = np.exp(-0.5 * (distance**2 - (distance**2).min(axis=1, keepdims=True)))
    weight /= weight.sum(axis=1, keepdims=True)
    below = np.cumsum(weight, axis=1)

    def quantile(share: float) -> Noise:
        found: Noise = lengths[np.minimum((below < share).sum(axis=1), len(lengths) - 1)]
        return found

    mean = weight @ lengths
    return np.stack([score, mean, quantile(0.1), quantile(0.5), quantile(0.9)], axis=1)


def engine_of(slots: int, trace: Trace, memory: str) -> EngineSettings:
    """With so much KV memory."""
    if memory == "ample":
        return EngineSettings(slots=slots, max_seqs=PLACES)
    weight = trace.output_tokens / trace.output_tokens.sum()
    held = ((trace.prompt_tokens + 0.5 * trace.output_tokens) * weight).sum()
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    blocks = max(float(memory) * slots * held, longest + 1) / 16
    return EngineSettings(slots=slots, max_seqs=PLACES, kv_blocks=int(blocks) + 1)


def measured_capacity(trace: Trace, cost: StepCost, engine: EngineSettings) -> float:
    """Requests a second that the engine does while any waits, of a burst of these."""
    steps = simulate(trace, make_discipline("fcfs"), cost, engine, log_steps=True).steps
    busy = steps[steps["waiting"] > 0]
    if len(busy) == 0:
        return capacity(trace, cost, engine)
    rate = busy["decode_tokens"].sum() / busy["duration_s"].sum()
    return float(rate / trace.output_tokens.mean())


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


def latencies(
    latency_s: NDArray[np.float64],
    first_s: NDArray[np.float64],
    gap_s: NDArray[np.float64],
    tokens: NDArray[np.int64],
) -> dict[str, float]:
    """RATIOS of requests: how long each took, to its first token, between two tokens at most."""
    wait_s = np.maximum(first_s, gap_s)
    return {
        "mean": float(latency_s.mean()),
        "p99": float(np.percentile(latency_s, 99)),
        "s_per_token": float((latency_s / tokens).mean()),
        "ttft": float(first_s.mean()),
        "longest_wait": float(wait_s.mean()),
        "worst_wait": float(wait_s.max()),
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
                **twin.discipline, pausing=twin.pauses, peek=twin.peeks, max_stall_s=STALL_S
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
        floors = every.get((row["workload"], row["load"]), {}) if row["kv"] == "ample" else {}
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
                found = rows(case, given.data, given.costs, load, memory, seeds, raw, policies)
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
