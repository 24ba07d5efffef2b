"""Simulate requests on one or several engines under a discipline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, LengthwiseError, unknown_name
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.prices import new_step_times
from lengthwise.policy.ranking import Ranking
from lengthwise.policy.replicas import PREDICTS, ROUTERS
from lengthwise.request import PREDICTION
from lengthwise.simulate import cluster
from lengthwise.simulate.cluster import Cluster, advance, new_routing, new_turns
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.kv_blocks import new_memory
from lengthwise.simulate.replica import (
    SERVED,
    STEP,
    Shared,
    limits_of,
    new_batches,
    new_engines,
    new_queues,
    new_recent,
    with_more_memory,
    with_more_rows,
)
from lengthwise.workload.trace import Trace

_STRETCH = 1 << 17  # steps between two looks at the outside


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Attributes:
        requests: array of SERVED, shape [n], in the order of the trace. Later turns of sessions
            arrive when the earlier ones have ended, which may be in another order.
        steps: array of STEP; empty unless asked for.
        step_count: steps of all engines.
        token_times: s from arrival of every token, all requests' one after another; empty unless
            asked for.
        token_offsets: shape [n + 1]: where each request's begin.
        delay_s: between client and engine, there and back; latencies contain it, and the times of
            `requests` and `token_times`, which are the engine's, do not.
    """

    requests: NDArray[np.void]
    steps: NDArray[np.void]
    step_count: int
    token_times: NDArray[np.float32]
    token_offsets: NDArray[np.int64]
    delay_s: float = 0.0

    @property
    def output_tokens(self) -> int:
        """Tokens of all answers."""
        return int(self.requests["output_tokens"].sum())

    @property
    def makespan_s(self) -> float:
        """From the first arrival to the last answer's end."""
        if len(self.requests) == 0:
            return 0.0
        return float(self.requests["finish_s"].max() - self.requests["arrival_s"][0])

    @property
    def e2el_s(self) -> NDArray[np.float64]:
        """End-to-end latency of each request, shape [n]."""
        latency: NDArray[np.float64] = self.requests["finish_s"] - self.requests["arrival_s"]
        return latency + self.delay_s

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Time to first token, shape [n]."""
        latency: NDArray[np.float64] = self.requests["first_token_s"] - self.requests["arrival_s"]
        return latency + self.delay_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Time per output token behind the first, shape [n]; NaN for answers of one token."""
        tokens = self.requests["output_tokens"] - 1
        span = self.requests["finish_s"] - self.requests["first_token_s"]
        return np.where(tokens > 0, span / np.maximum(tokens, 1), np.nan)

    @property
    def latency_per_output_token_s(self) -> NDArray[np.float64]:
        """End-to-end latency over the answer's length, shape [n]."""
        per_token: NDArray[np.float64] = self.e2el_s / self.requests["output_tokens"]
        return per_token


def simulate(
    trace: Trace,
    discipline: Discipline,
    cost: StepCost,
    engine: EngineSettings | None = None,
    *,
    predictions: NDArray[np.float64] | None = None,
    probe: NDArray[np.float64] | None = None,
    priority: NDArray[np.int64] | None = None,
    deadline_s: NDArray[np.float64] | None = None,
    tenant: NDArray[np.int64] | None = None,
    replicas: int = 1,
    router: str = "least-outstanding",
    routers: int = 1,
    stale_s: float = 0.0,
    seed: int = 0,
    log_steps: bool = False,
    token_times: bool = False,
    progress: Callable[[int], None] = lambda arrived: None,
) -> Simulation:
    """Serve a trace. Same inputs, same bytes.

    Args:
        trace: arrivals and lengths; only ends of answers, and oracles, know the lengths.
        discipline: what decides who runs.
        cost: how long steps take.
        engine: each engine's limits.
        predictions: shape [n, 5]: score, expected, low, median, high, in output tokens but for the
            score. None where the discipline needs none. A request without one (NaN) ranks as the
            median of those that were made before, and as that of all for a router.
        probe: the same, as a probe says it of a prompt that has been computed; it takes the
            place of the prediction before, score excepted. None without a probe.
        priority: each request's own class, lower runs sooner.
        deadline_s: seconds from each request's arrival to when its first token is due, 0 for none.
        tenant: whose each request is, from 0 on.
        replicas: engines behind the router.
        router: one of ROUTERS.
        routers: how many of them, which take turns.
        stale_s: with several, how old what each knows of the others' requests may be.
        seed: for the router's draws.
        log_steps: keep what every step did.
        token_times: keep when every token came.
        progress: called now and then with the number of requests that have arrived.

    Raises:
        InputError: predictions are missing, a request can never fit, an unknown router.
        LengthwiseError: the engine came to a standstill.
    """
    engine = engine or EngineSettings()
    n = len(trace)
    if router not in ROUTERS:
        raise unknown_name("router", router, ROUTERS)
    if replicas < 1:
        raise InputError(f"the number of replicas must be at least 1, got {replicas}")
    if replicas > 1 and router in PREDICTS and predictions is None:
        raise InputError(f"router {router!r} needs predictions: name a predictor")
    if routers < 1:
        raise InputError(f"the number of routers must be at least 1, got {routers}")
    requests = _requests(trace, discipline, predictions, probe, priority, deadline_s, tenant)
    longest = int((trace.prompt_tokens + trace.output_tokens).max(initial=1))
    blocks = engine.blocks(longest)
    shared, contents = _shared(trace, engine)
    classes = bool((requests["priority"] != requests["priority"][:1]).any())
    limits = limits_of(engine, blocks, shared.tokens > 0, classes)
    engines = new_engines(replicas, blocks, limits)
    if discipline.adapts >= 0:
        engines["cutoff"] = discipline.values[discipline.adapts]
    rules = discipline.rules.copy()
    rules["reorders"] |= requests["priority"].any()
    rules["pauses"] &= engine.places > engine.slots
    rules["peeks"] &= rules["pauses"] & (probe is not None)
    offsets = np.zeros(n + 1, np.int64)
    if token_times:
        np.cumsum(requests["output_tokens"], out=offsets[1:])
    times = np.full(offsets[-1], np.nan, np.float32)
    all_engines = Cluster(
        # A value may be set anew while it runs.
        ranking=Ranking(discipline.ranking, discipline.values.copy(), discipline.guards),
        rules=rules,
        limits=limits,
        terms=cost.terms,
        times=new_step_times(replicas),
        engines=engines,
        requests=requests,
        turns=new_turns(trace, cost.delay_s),
        shared=shared,
        queues=new_queues(replicas, engine.slots, int(requests["tenant"].max(initial=0)) + 1),
        recents=new_recent(replicas),
        batches=new_batches(replicas, engine.places),
        memories=new_memory(
            replicas,
            engine.places,
            blocks,
            contents,
            longest,
            engine.block_size,
            engine.prefix_caching,
        ),
        token_times=times,
        token_offsets=offsets,
        routing=new_routing(
            router,
            n,
            replicas,
            routers,
            stale_s,
            engine.slots,
            discipline.policy.name != "fcfs",
            seed,
        ),
    )
    logs: list[NDArray[np.void]] = []
    arrived = taken = 0
    while True:
        log = np.zeros(_STRETCH if log_steps else 1, STEP)
        why, arrived, steps = advance(all_engines, log, arrived, _STRETCH)
        taken += steps
        if log_steps:
            logs.append(log[:steps].copy())
        if why == cluster.DONE:
            break
        if why == cluster.STUCK:
            raise LengthwiseError("the simulated engine stands still: requests wait, none can run")
        if why == cluster.MORE_ROWS:
            all_engines = all_engines._replace(queues=with_more_rows(all_engines.queues))
        elif why == cluster.MORE_MEMORY:
            all_engines = all_engines._replace(memories=with_more_memory(all_engines.memories))
        progress(arrived)
    steps_done = np.concatenate(logs) if logs else np.zeros(0, STEP)
    return Simulation(requests, steps_done, taken, times, offsets, cost.delay_s)


def warm_up() -> None:
    """Compile the simulator, or load it from disk where that has been done before."""
    one = np.ones(1, np.int64)
    trace = Trace("warm-up", np.zeros(1), one, one, [], "synthetic")
    simulate(trace, make_discipline("fcfs"), StepCost(1e-3, 0.0, 0.0), EngineSettings(slots=1))


def _requests(
    trace: Trace,
    discipline: Discipline,
    predictions: NDArray[np.float64] | None,
    probe: NDArray[np.float64] | None,
    priority: NDArray[np.int64] | None,
    deadline_s: NDArray[np.float64] | None,
    tenant: NDArray[np.int64] | None,
) -> NDArray[np.void]:
    """The trace as an array of SERVED to which nothing has happened."""
    n = len(trace)
    requests = np.zeros(n, SERVED)
    requests["arrival_s"] = trace.arrival_s
    requests["prompt_tokens"] = trace.prompt_tokens
    requests["output_tokens"] = trace.output_tokens
    if priority is not None:
        requests["priority"] = priority
    if deadline_s is not None:
        requests["deadline_s"] = deadline_s
    if tenant is not None:
        requests["tenant"] = tenant
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        requests[name] = np.nan
    requests["memory"] = -1
    for column, name in enumerate(PREDICTION[1:], start=1):
        requests[f"probe_{name}"] = np.nan if probe is None else probe[:, column]
    if predictions is None:
        if discipline.needs_predictions:
            raise InputError(
                f"policy {discipline.policy.name!r} needs predictions: name a predictor"
            )
        return requests
    if predictions.shape != (n, len(PREDICTION)):
        raise InputError(f"predictions have the shape {predictions.shape}, not ({n}, 5)")
    requests["predicted"] = True
    missing: NDArray[np.bool_] = ~np.all(np.isfinite(predictions), axis=1)
    if missing.any():
        known = predictions[~missing]
        stand_in = np.median(known, axis=0) if len(known) else np.ones(len(PREDICTION))
        predictions = np.where(missing[:, None], stand_in, predictions)
        requests["predicted"] = ~missing
    for column, name in enumerate(PREDICTION):
        requests[name] = predictions[:, column]
    return requests


def _shared(trace: Trace, engine: EngineSettings) -> tuple[Shared, int]:
    """What prompts share, and how many different blocks of it there are."""
    if trace.block_hashes is None or trace.block_offsets is None or not engine.prefix_caching:
        return Shared(np.zeros(0, np.int64), np.zeros(1, np.int64), 0), 0
    if trace.hash_tokens % engine.block_size:
        raise InputError(
            f"{trace.name} names prompts' content by {trace.hash_tokens} tokens, which is no "
            f"multiple of the block size {engine.block_size}: choose another block size"
        )
    contents = np.ascontiguousarray(trace.block_hashes, np.int64)
    blocks = trace.hash_tokens // engine.block_size
    offsets = np.ascontiguousarray(trace.block_offsets, np.int64)
    return Shared(contents, offsets, trace.hash_tokens), int(contents.max(initial=0) + 1) * blocks
