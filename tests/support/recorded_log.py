"""A folder as the setting `record` leaves it, of simulated traffic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace

COST = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)
ENGINE = EngineSettings(slots=8, kv_blocks=2000)
STEPS, REQUESTS = "lengthwise.steps/1", "lengthwise.requests/1"


def write_log(
    folder: Path, trace: Trace, engine: EngineSettings = ENGINE, older: bool = False
) -> Simulation:
    """Serve a trace under fcfs, and leave the record that the scheduler would."""
    served = simulate(trace, make_discipline("fcfs"), COST, engine, log_steps=True)
    ends = np.append(served.steps["start_s"][1:], np.inf)
    names = ("prefill_tokens", "decode_tokens", "running", "waiting", "free_blocks", "preempted")
    names += () if older else ("requests", "kv_tokens", "attention_tokens")
    header = {"schema": STEPS} if older else {"schema": STEPS, "engine": asdict(engine)}
    steps = [
        {
            "t": 100.0 + float(step["start_s"]),
            # The scheduler does not time a step after which it idled.
            "duration_s": float(step["duration_s"])
            if end - step["start_s"] <= step["duration_s"] + 1e-9
            else None,
            **{name: int(step[name]) for name in names},
        }
        for step, end in zip(served.steps, ends, strict=True)
    ]
    requests = [
        {
            "id": str(number),
            "arrival_s": 100.0 + float(row["arrival_s"]),
            "queue_s": float(row["scheduled_s"] - row["arrival_s"]),
            "output_tokens": int(row["output_tokens"]),
            "prompt_tokens": int(row["prompt_tokens"]),
            "cached_tokens": int(row["cached_tokens"]),
        }
        for number, row in enumerate(served.requests)
    ]
    requests.sort(key=lambda row: float(served.requests["finish_s"][int(row["id"])]))
    requests.append({**requests[-1], "id": "gone", "output_tokens": 0, "queue_s": None})
    folder.mkdir(exist_ok=True)
    for name, lines in (
        ("steps.jsonl", [header, *steps]),
        ("requests.jsonl", [{"schema": REQUESTS}, *requests]),
    ):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return served


def traffic(rate: float, count: int = 600, sigma: float = 0.9) -> Trace:
    return synthetic_trace(count, rate, mean_prompt=80, mean_output=80, sigma=sigma, seed=2)
