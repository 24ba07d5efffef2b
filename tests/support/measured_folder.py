"""A benchmark's folder whose engine is a simulation: what calibration must find is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.advise.calibrate import Clock, steady
from lengthwise.measure.results import RequestRecord, ResultsWriter, RoundInfo, RunInfo
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import Settings
from lengthwise.simulate.engine import WORK, EngineSettings, StepCost
from lengthwise.simulate.predictions import noisy
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace

ENGINE = EngineSettings(slots=8, token_budget=256, kv_blocks=1000, block_size=16)
COST = StepCost(7e-3, 8e-5, 3e-4, 2e-7, 1e-4, 3e-8)
_ENGINE_CLOCK_S = 5000.0  # of the engine's clock when the round starts


def write_folder(
    folder: Path,
    *,
    policies: Sequence[str] = ("fcfs", "srpt"),
    repeats: int = 2,
    requests: int = 150,
    load: float = 1.2,
    cost: StepCost = COST,
    clock: Clock | None = None,
    lag: int = 0,
    seed: int = 0,
) -> None:
    """Write a run: policies in turn, each repeat with its own requests.

    Args:
        folder: to write to.
        policies: by name.
        repeats: of all.
        requests: in each round.
        load: share of what the engine can do.
        cost: of its steps.
        clock: how fast the machine was; as the costs say without.
        lag: 1 for asynchronous scheduling.
        seed: of requests and predictions.
    """
    arguments = ["--max-num-seqs", str(ENGINE.slots), "--block-size", str(ENGINE.block_size)]
    run = RunInfo("lengthwise bench", "2026-11-20", "m", "d", requests, {"arguments": arguments})
    writer = ResultsWriter(folder, run)
    number = 0
    for repeat in range(repeats):
        trace = synthetic_trace(
            requests, rate=1.0, mean_prompt=120, mean_output=60, sigma=0.8, seed=seed + repeat
        )
        capacity = 1.0 / cost.service_s(trace.prompt_tokens, trace.output_tokens, 8).mean()
        trace = trace.scaled(load * float(capacity))
        predictions = noisy(trace.output_tokens, 0.5, seed + repeat)
        for policy in policies:
            info = RoundInfo(number, policy, "1.2", repeat)
            engine = replace(ENGINE, lag=lag)
            _write_round(writer, info, trace, predictions, cost, clock or steady(), engine)
            number += 1


def _write_round(
    writer: ResultsWriter,
    info: RoundInfo,
    trace: Trace,
    predictions: np.ndarray,
    cost: StepCost,
    clock: Clock,
    engine: EngineSettings,
) -> None:
    settings = Settings(policy=info.policy, predictor="declared", max_overtakes=None)
    simulation = simulate(
        replace(trace, arrival_s=clock.work_at(trace.arrival_s)),
        make_discipline(**settings.discipline_arguments(engine.slots)),
        cost,
        engine,
        predictions=predictions,
        log_steps=True,
    )
    steps = _steps(simulation, clock, engine.lag)
    log = writer.folder / "server" / "rounds" / f"{info.round:03d}"
    header = {"schema": "lengthwise.steps/1", "engine": asdict(engine)}
    write_lines(log / "steps.jsonl", [header, *steps])
    served = simulation.requests
    rows, lines = [], []
    for i, sent_s in enumerate(trace.arrival_s.tolist()):
        first_s, finish_s = (
            float(clock.wall_at(served[name][i])) for name in ("first_token_s", "finish_s")
        )
        row = RequestRecord(info.round, info.policy, info.load, i, sent_s, sent_s)
        row.first_token_s, row.finish_s = first_s + cost.delay_s, finish_s + cost.delay_s
        row.token_times = [row.first_token_s - sent_s, row.finish_s - sent_s]
        row.prompt_tokens = int(trace.prompt_tokens[i])
        row.output_tokens = int(trace.output_tokens[i])
        row.expected_tokens = float(predictions[i, 1])
        # The engine takes requests in between two steps.
        joined_s = _next_boundary(steps, sent_s + _ENGINE_CLOCK_S)
        first = int(np.searchsorted(simulation.steps["start_s"], served["scheduled_s"][i] - 1e-9))
        row.queue_s = max(steps[first]["t"] - joined_s, 0.0)
        row.preemptions = int(served["preemptions"][i])
        rows.append(row)
        names = ("score", "expected_tokens", "low_tokens", "median_tokens", "high_tokens")
        told = dict(zip(names, predictions[i].tolist(), strict=True))
        lines.append({"id": str(i), "arrival_s": joined_s, "queue_s": row.queue_s, **told})
    write_lines(log / "requests.jsonl", [{"schema": "lengthwise.requests/1"}, *lines])
    kept = settings.model_dump(exclude={"record", "metrics_port"})
    writer.append(replace(info, settings=kept), rows)


def _steps(simulation: Simulation, clock: Clock, lag: int) -> list[dict[str, Any]]:
    """The lines of steps.jsonl; a step has no duration where the engine idled after it."""
    steps = simulation.steps
    starts, ends = steps["start_s"], steps["start_s"] + steps["duration_s"]
    idles = np.append(starts[1:] > ends[:-1] + 1e-9, True)
    planned = starts.copy()
    if lag:
        # As soon as the step before begins.
        planned[1:][~idles[:-1]] = starts[:-1][~idles[:-1]]
    wall_s = clock.wall_at(planned) + _ENGINE_CLOCK_S
    durations = np.diff(wall_s, append=0.0)
    return [
        {
            "t": float(wall_s[k]),
            "duration_s": None if idles[k] else float(durations[k]),
            **{name: int(steps[name][k]) for name in (*WORK, "running", "waiting", "free_blocks")},
        }
        for k in range(len(steps))
    ]


def _next_boundary(steps: Sequence[dict[str, Any]], time_s: float) -> float:
    """When the engine next looks at what has arrived."""
    starts = [step["t"] for step in steps]
    k = int(np.searchsorted(starts, time_s))
    before = steps[k - 1]["duration_s"] if k else None
    return time_s if before is None or k == len(steps) else float(starts[k])


def write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def rewrite_lines(path: Path, change: Any) -> None:
    """Put every line but the header through a function."""
    header, *values = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    write_lines(path, [header, *map(change, values)])
