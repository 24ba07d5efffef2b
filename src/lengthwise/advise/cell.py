"""One simulation of a sweep: what is asked, and what came out, in figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.measure.metrics import good_requests, latency_figures
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import PREDICTS
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.arrivals import burst, gamma
from lengthwise.workload.trace import Trace

Figures = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One simulation.

    Attributes:
        label: the policy as the user wrote it.
        discipline: arguments of `make_discipline`.
        load: how requests arrive: a number, the share of what the engines can do; "burst"; "trace",
            as recorded; or "rate=R", requests a second.
        cv: coefficient of variation of random gaps; None keeps the trace's own pattern of arrivals
            and only stretches it.
        seed: for arrivals, predictions and the router.
        engine: limits of each engine.
        cost: of its steps.
        predictor: see `trace_predictions`; "given" for the predictions that come with the trace.
        probe: the same, as a probe says it of a prompt that has been computed; None without one.
        replicas: engines.
        router: see `simulate`, as are the next two.
        routers: in front of the engines.
        stale_s: how old what each knows of the others' requests may be.
        objectives: of service, see `parse_objectives`, for `request_goodput`.
        tags: what a sweep varied, repeated in the figures.
    """

    label: str
    discipline: dict[str, Any]
    load: str
    cost: StepCost
    engine: EngineSettings
    cv: float | None = None
    seed: int = 0
    predictor: str | None = None
    probe: str | None = None
    replicas: int = 1
    router: str = "least-outstanding"
    routers: int = 1
    stale_s: float = 0.0
    objectives: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> Figures:
        """What tells the cell from others, as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Workload:
    """What all cells of a sweep serve.

    Attributes:
        trace: the requests.
        predictions: what a predictor says of them, where one has read their prompts.
    """

    trace: Trace
    predictions: NDArray[np.float64] | None = field(default=None)


def capacity(trace: Trace, cost: StepCost, engine: EngineSettings) -> float:
    """Requests of this kind that one engine can finish a second, with a full batch.

    The batch is full when its slots or its KV blocks are taken, whichever comes first.
    """
    batch = full_batch(trace, engine)
    return 1.0 / float(cost.service_s(trace.prompt_tokens, trace.output_tokens, batch).mean())


def full_batch(trace: Trace, engine: EngineSettings) -> int:
    """Requests that run at once when there are more than enough."""
    if engine.kv_blocks is None:
        return engine.slots
    # A request holds its prompt and, on average over its life, half of its answer; one is met in a
    # batch in proportion to the steps that it stays.
    weight = trace.output_tokens / max(float(trace.output_tokens.sum()), 1.0)
    held = float(((trace.prompt_tokens + 0.5 * trace.output_tokens) * weight).sum())
    room = engine.kv_blocks * (1.0 - engine.watermark) * engine.block_size
    return max(1, min(engine.slots, int(room / max(held, 1.0))))


def arrivals_of(cell: Cell, trace: Trace) -> Trace:
    """The trace with the cell's arrivals."""
    n = len(trace)
    if cell.load == "trace":
        return trace
    if cell.load == "burst":
        return trace.with_arrivals(burst(n))
    if cell.load.startswith("rate="):
        rate = float(cell.load.removeprefix("rate="))
    else:
        rate = float(cell.load) * cell.replicas * capacity(trace, cell.cost, cell.engine)
    if cell.cv is None and math.isfinite(trace.rate):
        return trace.scaled(rate / trace.rate)
    return trace.with_arrivals(gamma(n, rate, cell.cv or 1.0, cell.seed))


def offered_load(trace: Trace, cell: Cell) -> float:
    """Work offered over work that the engines can do in the time; inf for a burst."""
    return trace.rate / (cell.replicas * capacity(trace, cell.cost, cell.engine))


def run_cell(cell: Cell, workload: Workload) -> Figures:
    """Simulate a cell.

    Raises:
        InputError: something asked for cannot be; see `simulate`.
    """
    trace = arrivals_of(cell, workload.trace)
    discipline = make_discipline(**cell.discipline)
    predictor = discipline.policy.predictor or cell.predictor
    predictions = None
    if discipline.needs_predictions or (cell.replicas > 1 and cell.router in PREDICTS):
        if predictor == "given":
            predictions = workload.predictions
        elif predictor is not None:
            predictions = trace_predictions(trace, predictor, cell.seed)
    probe = None
    if cell.probe is not None and discipline.refines:
        probe = trace_predictions(trace, cell.probe, cell.seed)
    simulated = simulate(
        trace,
        discipline,
        cell.cost,
        cell.engine,
        predictions=predictions,
        probe=probe,
        replicas=cell.replicas,
        router=cell.router,
        routers=cell.routers,
        stale_s=cell.stale_s,
        seed=cell.seed,
    )
    return {
        "policy": cell.label,
        "load": cell.load,
        "seed": cell.seed,
        "replicas": cell.replicas,
        "router": cell.router if cell.replicas > 1 else None,
        "predictor": predictor if predictions is not None else None,
        "offered_load": _finite(offered_load(trace, cell)),
        **cell.tags,
        **summary(simulated, cell.objectives),
    }


def summary(simulated: Simulation, objectives: Mapping[str, float] | None = None) -> Figures:
    """A simulation in figures: names and units as in `measure`, times in ms.

    A latency that no request has, as TPOT where every answer is one token, is left out.

    Args:
        simulated: what happened.
        objectives: of service, in ms; without any there is no `request_goodput`.
    """
    requests = simulated.requests
    ttft_s = simulated.ttft_s
    latencies = {
        "e2el": simulated.e2el_s,
        "ttft": ttft_s,
        "tpot": simulated.tpot_s,
        "queue": requests["scheduled_s"] - requests["arrival_s"],
        "latency_per_output_token": simulated.latency_per_output_token_s,
        "max_waiting_time": np.maximum(ttft_s, requests["longest_gap_s"]),
    }
    span = simulated.makespan_s
    figures: Figures = {
        "completed": int(np.isfinite(requests["finish_s"]).sum()),
        "duration": span,
        "request_throughput": _finite(len(requests) / span) if span > 0 else None,
        "output_throughput": _finite(simulated.output_tokens / span) if span > 0 else None,
        "steps": simulated.step_count,
        "preemptions": int(requests["preemptions"].sum()),
        "memory_preemptions": int(requests["memory_preemptions"].sum()),
        "pauses": int(requests["pauses"].sum()),
        "looks": int(requests["looks"].sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
        "cached_tokens": int(requests["cached_tokens"].sum()),
        "max_overtaken": int(requests["overtaken"].max(initial=0)),
    }
    if objectives:
        good = good_requests(latencies, objectives)
        figures["request_goodput"] = _finite(good / span) if span > 0 else None
    for name, seconds in latencies.items():
        if np.isfinite(seconds).any():
            figures |= latency_figures(name, seconds)
    return figures


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
