"""The simulator against textbooks, conservation laws and what vLLM is known to do."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.advise.sweep import Cell, Workload, capacity, full_batch, run_cell
from lengthwise.errors import InputError
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import ROUTERS
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.predictions import certain, noisy
from lengthwise.simulate.presets import preset
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.arrivals import synthetic_trace
from lengthwise.workload.trace import Trace

AFFINE = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)


def trace_of(
    arrivals: Any,
    prompts: Any,
    outputs: Any,
    shared: list[list[int]] | None = None,
    tokens: int = 0,
) -> Trace:
    hashes = offsets = None
    if shared is not None:
        hashes = np.array([x for blocks in shared for x in blocks], np.int64)
        offsets = np.cumsum([0, *map(len, shared)]).astype(np.int64)
    return Trace(
        "test",
        np.asarray(arrivals, np.float64),
        np.asarray(prompts, np.int64),
        np.asarray(outputs, np.int64),
        [],
        "synthetic",
        hashes,
        offsets,
        tokens,
    )


def run(trace: Trace, policy: str = "fcfs", engine: Any = None, **more: Any) -> Simulation:
    discipline = make_discipline(policy, **more.pop("discipline", {}))
    more.setdefault("predictions", certain(trace.output_tokens))
    return simulate(trace, discipline, more.pop("cost", AFFINE), engine or EngineSettings(), **more)


def test_fcfs_with_ample_memory_is_the_textbook_schedule() -> None:
    """Request by request: a loop over sequences that knows neither blocks nor queues of ours."""
    trace = synthetic_trace(3000, 44.0, mean_prompt=200, mean_output=200, sigma=0.8, seed=3)
    slots, budget = 64, 512
    now, arrived = 0.0, 0
    queue: list[int] = []
    batch: list[list[int]] = []  # request, tokens to prefill, tokens left, context
    first, finish = np.zeros(len(trace)), np.zeros(len(trace))
    while arrived < len(trace) or queue or batch:
        if not queue and not batch:
            now = max(now, float(trace.arrival_s[arrived]))
        while arrived < len(trace) and trace.arrival_s[arrived] <= now:
            queue.append(arrived)
            arrived += 1
        left, tokens, context = budget, 0, 0
        ran = []
        for sequence in batch:
            take = min(sequence[1], left) if sequence[1] else min(1, left)
            ran.append(take)
            left -= take
        while queue and left > 0 and len(batch) < slots:
            i = queue.pop(0)
            batch.append([i, int(trace.prompt_tokens[i]), int(trace.output_tokens[i]), 0])
            ran.append(min(batch[-1][1], left))
            left -= ran[-1]
        for sequence, take in zip(batch, ran, strict=True):
            tokens += take
            sequence[3] += take
            context += sequence[3] if take else 0
        now += 7e-3 + 32e-6 * tokens + 0.04e-6 * context
        for sequence, take in zip(batch, ran, strict=True):
            if not take:
                continue
            sequence[1] = max(sequence[1] - take, 0)
            if sequence[1] == 0:
                sequence[2] -= 1
                first[sequence[0]] = first[sequence[0]] or now
                finish[sequence[0]] = now
        batch = [sequence for sequence in batch if sequence[2] > 0]
    served = run(trace, engine=EngineSettings(slots=slots, token_budget=budget)).requests
    assert served["first_token_s"] == pytest.approx(first, rel=1e-9)
    assert served["finish_s"] == pytest.approx(finish, rel=1e-9)


def test_a_queue_with_one_slot_is_mg1() -> None:
    """One slot, one step a token: the mean response is Pollaczek's and Khinchine's."""
    generator = np.random.default_rng(0)
    n, rate = 200_000, 0.7
    sizes = generator.geometric(0.01, n)
    trace = trace_of(np.cumsum(generator.exponential(1 / rate, n)), np.ones(n), sizes)
    cost = StepCost(0.01, 0.0, 0.0)
    engine = EngineSettings(slots=1, token_budget=8, prefix_caching=False)
    service = 0.01 * sizes
    load = rate * service.mean()
    expected = service.mean() + rate * (service**2).mean() / (2 * (1 - load))
    assert run(trace, engine=engine, cost=cost).e2el_s.mean() == pytest.approx(expected, rel=0.03)
    shortest = run(trace, "sjf", engine, cost=cost).e2el_s.mean()
    jobs = sorted(zip(trace.arrival_s, service, strict=True))
    assert shortest == pytest.approx(shortest_first(jobs), rel=1e-6)


def shortest_first(jobs: list[tuple[float, float]]) -> float:
    """Mean response time of non-preemptive shortest job first, by its definition."""
    heap: list[tuple[float, int]] = []
    now, coming, total = 0.0, 0, 0.0
    for _ in jobs:
        if not heap:
            now = max(now, jobs[coming][0])
        while coming < len(jobs) and jobs[coming][0] <= now:
            heapq.heappush(heap, (jobs[coming][1], coming))
            coming += 1
        size, which = heapq.heappop(heap)
        now += size
        total += now - jobs[which][0]
    return total / len(jobs)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["fcfs", "srpt", "trail", "mlfq", "hrrn"]))
def test_everybody_is_served_once_and_memory_is_never_exceeded(seed: int, policy: str) -> None:
    generator = np.random.default_rng(seed)
    n = 60
    trace = trace_of(
        np.sort(generator.random(n)), generator.integers(1, 60, n), generator.integers(1, 40, n)
    )
    engine = EngineSettings(
        slots=int(generator.integers(1, 9)),
        token_budget=int(generator.integers(9, 60)),
        kv_blocks=int(generator.integers(7, 30)),
        prefix_caching=bool(generator.integers(2)),
        lag=int(generator.integers(2)),
        long_prefill_tokens=int(generator.choice([0, 7])),
    )
    result = run(trace, policy, engine, log_steps=True, token_times=True)
    served, steps = result.requests, result.steps
    assert np.isfinite(served["finish_s"]).all()
    assert (served["finish_s"] >= served["first_token_s"]).all()
    assert (served["first_token_s"] > served["scheduled_s"]).all()
    assert (served["scheduled_s"] >= served["arrival_s"]).all()
    assert np.isfinite(result.token_times).all()
    assert (steps["running"] <= engine.slots).all()
    assert (steps["prefill_tokens"] + steps["decode_tokens"] <= engine.token_budget).all()
    assert (steps["free_blocks"] >= 0).all()
    computed = (trace.prompt_tokens + trace.output_tokens - 1).sum() + served[
        "recomputed_tokens"
    ].sum()
    wasted = n if engine.lag else 0  # a token for each answer whose end comes too late
    done = int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())
    assert computed <= done <= computed + wasted


def test_same_inputs_give_the_same_bytes() -> None:
    trace = synthetic_trace(2000, 60.0, mean_prompt=100, mean_output=100, sigma=1.0, seed=1)
    predictions = noisy(trace.output_tokens, 0.5, seed=4)
    results = [
        run(
            trace,
            "srpt",
            EngineSettings(slots=32),
            predictions=predictions,
            replicas=3,
            router="power-of-two",
            seed=9,
            log_steps=True,
        )
        for _ in range(2)
    ]
    assert results[0].requests.tobytes() == results[1].requests.tobytes()
    assert results[0].steps.tobytes() == results[1].steps.tobytes()


def test_shared_prompts_are_found_and_unshared_ones_are_not() -> None:
    shared = [[0, 1], [0, 1], [0, 2], [3, 4]]
    trace = trace_of([0.0, 1.0, 2.0, 3.0], [70] * 4, [4] * 4, shared, tokens=32)
    served = run(trace, engine=EngineSettings(block_size=16)).requests
    assert served["cached_tokens"].tolist() == [0, 64, 32, 0]
    without = run(trace, engine=EngineSettings(block_size=16, prefix_caching=False)).requests
    assert without["cached_tokens"].tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match="block size"):
        run(trace, engine=EngineSettings(block_size=20))


def test_cached_blocks_are_overwritten_oldest_first() -> None:
    shared = [[0], [1], [2], [0]]
    trace = trace_of([0.0, 1.0, 2.0, 3.0], [32] * 4, [8] * 4, shared, tokens=32)
    # Each takes 3 blocks and fills 2: with 6, the second of the first prompt is overwritten.
    for blocks, found in ((64, 16), (6, 16), (5, 0)):
        engine = EngineSettings(slots=1, kv_blocks=blocks, block_size=16)
        assert run(trace, engine=engine).requests["cached_tokens"][3] == found


def test_a_preempted_request_finds_its_kv_again_where_nobody_needed_the_room() -> None:
    trace = trace_of([0.0, 0.5], [200, 10], [400, 5])
    greedy = {"preemption": "greedy"}
    kept = run(trace, "srpt", EngineSettings(slots=1), discipline=greedy).requests
    lost = run(
        trace, "srpt", EngineSettings(slots=1, prefix_caching=False), discipline=greedy
    ).requests
    assert kept["preemptions"].tolist() == lost["preemptions"].tolist() == [1, 0]
    assert kept["recomputed_tokens"][0] < 16 < 200 < lost["recomputed_tokens"][0]


def test_asynchronous_scheduling_refills_a_slot_one_step_late() -> None:
    trace = trace_of([0.0, 0.0], [1, 1], [5, 5])
    cost = StepCost(0.01, 0.0, 0.0)
    for lag, second in ((0, 0.06), (1, 0.07)):
        served = run(trace, engine=EngineSettings(slots=1, lag=lag), cost=cost).requests
        assert served["finish_s"][0] == pytest.approx(0.05)
        assert served["first_token_s"][1] == pytest.approx(second)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_uses_all_engines(router: str) -> None:
    trace = synthetic_trace(400, 200.0, mean_prompt=50, mean_output=50, sigma=0.8, seed=1)
    result = run(trace, "srpt", EngineSettings(slots=8), replicas=4, router=router)
    assert set(result.requests["engine"]) == {0, 1, 2, 3}
    if router == "round-robin":
        assert result.requests["engine"].tolist() == [i % 4 for i in range(400)]
    alone = run(trace, "srpt", EngineSettings(slots=8))
    assert result.e2el_s.mean() < alone.e2el_s.mean()


def test_one_replica_is_as_if_there_were_no_router() -> None:
    trace = synthetic_trace(300, 30.0, mean_prompt=50, mean_output=50, sigma=0.8, seed=1)
    one = run(trace, "srpt", EngineSettings(slots=4))
    for router in ROUTERS:
        other = run(trace, "srpt", EngineSettings(slots=4), router=router)
        assert one.requests.tobytes() == other.requests.tobytes()


def test_more_requests_than_room_make_room() -> None:
    trace = synthetic_trace(3000, float("inf"), mean_prompt=20, mean_output=20, sigma=0.8, seed=1)
    served = run(trace, "srpt", EngineSettings(slots=16), discipline={"max_overtakes": 50}).requests
    assert np.isfinite(served["finish_s"]).all()
    assert 16 <= served["overtaken"].max() <= 50 + 16 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "slots"),
        ({"slots": 8.5}, "slots must be a whole number from 1 to"),
        ({"slots": True}, "slots must be a whole number"),
        ({"slots": "8"}, "slots must be a whole number"),
        ({"kv_blocks": float("nan")}, "kv_blocks must be a whole number"),
        ({"kv_blocks": 10**400}, "kv_blocks must be a whole number"),
        ({"max_seqs": 512.5}, "max_seqs must be a whole number"),
        ({"watermark": "0.1"}, "watermark"),
        ({"prefix_caching": "no"}, "prefix_caching must be true or false"),
        ({"slots": 64, "token_budget": 32}, "token budget"),
        ({"kv_blocks": 0}, "kv_blocks"),
        ({"watermark": 1.0}, "watermark"),
        ({"lag": 2}, "lag"),
        ({"long_prefill_tokens": -1}, "long prefills"),
    ],
)
def test_engines_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineSettings(**change)


def test_what_cannot_be_simulated_is_refused() -> None:
    trace = trace_of([0.0], [1000], [1000])
    with pytest.raises(InputError, match="can never run"):
        run(trace, engine=EngineSettings(kv_blocks=100))
    with pytest.raises(InputError, match="needs predictions"):
        run(trace, "srpt", predictions=None)
    with pytest.raises(InputError, match="shape"):
        run(trace, "srpt", predictions=np.ones((2, 5)))
    with pytest.raises(InputError, match="round-robin"):
        run(trace, router="random")
    with pytest.raises(InputError, match="replicas"):
        run(trace, replicas=0)


def test_a_request_without_a_prediction_ranks_in_the_middle() -> None:
    trace = trace_of([0.0] * 4, [1] * 4, [100, 10, 20, 30])
    predictions = certain(trace.output_tokens)
    predictions[0] = np.nan
    cost = StepCost(0.01, 0.0, 0.0)
    engine = EngineSettings(slots=1)
    served = run(trace, "sjf", engine, predictions=predictions, cost=cost).requests
    assert np.argsort(served["scheduled_s"]).tolist() == [1, 0, 2, 3]


def test_capacity_is_what_a_full_engine_does() -> None:
    trace = synthetic_trace(4000, float("inf"), mean_prompt=200, mean_output=200, sigma=0.5, seed=1)
    for engine in (EngineSettings(slots=64), EngineSettings(slots=256, kv_blocks=1000)):
        result = run(trace, engine=engine)
        really = len(trace) / result.makespan_s
        assert capacity(trace, AFFINE, engine) == pytest.approx(really, rel=0.12)
    assert full_batch(trace, EngineSettings(slots=256, kv_blocks=1000)) < 100
    for gpu in ("a100", "h100"):
        cost, engine = preset(gpu, "llama-3-8b").cost, EngineSettings(slots=64)
        really = len(trace) / run(trace, engine=engine, cost=cost).makespan_s
        assert capacity(trace, cost, engine) == pytest.approx(really, rel=0.05)


def test_a_cell_offers_the_load_it_was_asked_for() -> None:
    trace = synthetic_trace(3000, 5.0, mean_prompt=100, mean_output=100, sigma=0.8, seed=1)
    base: dict[str, Any] = {
        "label": "srpt",
        "discipline": {"policy": "srpt"},
        "cost": AFFINE,
        "engine": EngineSettings(slots=16),
        "predictor": "noisy-oracle:0.5",
    }
    for load, cv in (("0.8", None), ("0.8", 1.0), ("trace", None), ("rate=3", None)):
        row = run_cell(Cell(load=load, cv=cv, **base), Workload(trace))
        if load == "0.8":
            assert row["offered_load"] == pytest.approx(0.8, rel=0.05)
        assert row["completed"] == 3000
        assert row["predictor"] == "noisy-oracle:0.5"
    assert run_cell(Cell(load="burst", **base), Workload(trace))["offered_load"] is None
