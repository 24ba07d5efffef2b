"""The simulator against an independent engine in plain Python: identical schedules."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.request import PREDICTION, REQUEST, WAITING, new_table
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.replica import limits_of
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.trace import Trace
from tests.support.plain_engine import Job, PlainEngine

QUICK = 100  #: workloads for each policy
ALL = 1000  #: with the slow tests
POLICIES = (
    "fcfs",
    "priority",
    "sjf",
    "srpt",
    "ltr",
    "trail",
    "gittins",
    "tie",
    "hrrn",
    "shortest-prefill-first",
    "mlfq",
    "oracle",
    "oracle-sjf",
)


def random_discipline(
    policy: str, generator: np.random.Generator, max_tenant_lead: float | None
) -> Discipline:
    if policy == "fcfs":
        return make_discipline(policy)
    return make_discipline(
        policy,
        preemption=generator.choice(["never", "pays", "greedy"]),
        max_overtakes=generator.choice([None, 2, 5]),
        overtake_share=generator.choice([0.0, 0.5]),
        max_wait_s=generator.choice([None, 0.1]),
        max_lead=generator.choice([None, 0.0, 1.0, 3.0]),
        starvation_threshold=generator.choice([None, 6]),
        starvation_quantum=3,
        max_preemptions=int(generator.integers(1, 4)),
        memory_growth=generator.choice([0.0, 0.0, 1.0]),
        service_time=bool(generator.integers(2)),
        max_tenant_lead=max_tenant_lead,
    )


def random_case(
    policy: str, seed: int
) -> tuple[Trace, np.ndarray, np.ndarray, np.ndarray, Discipline, EngineSettings, StepCost]:
    generator = np.random.default_rng([seed, POLICIES.index(policy)])
    n = int(generator.integers(1, 12))
    outputs = generator.integers(1, 16, n)
    trace = Trace(
        name="random",
        arrival_s=np.sort(generator.choice([0.0, 0.02, 0.1]) * generator.random(n) * n),
        prompt_tokens=generator.integers(1, 20, n),
        output_tokens=outputs,
        rejected=[],
        layout="synthetic",
    )
    middle = np.maximum(outputs * generator.lognormal(0, 0.5, n), 1.0)
    predictions = np.stack([middle, middle, middle * 0.5, middle, middle * 2], axis=1)
    slots = int(generator.integers(1, 5))
    engine = EngineSettings(
        slots=slots,
        token_budget=int(generator.integers(slots, 24)),
        kv_blocks=int(generator.integers(9, 24)),
        block_size=4,
        prefix_caching=bool(generator.integers(2)),
        watermark=float(generator.choice([0.0, 0.05])),
    )
    knots = ((1, 2e-3), (4, 2e-3), (12, 6e-3)) if seed % 2 else ()  # of steps of 1 to 23 tokens
    prefill_s = generator.choice([1e-5, 1e-3])
    cost = StepCost(7e-3, prefill_s, 1e-4, 1e-6, 1e-5, 1e-7, linear=knots)
    classes = generator.integers(-1, 2, n) * int(policy != "fcfs" and generator.integers(2))
    chance = np.random.default_rng([seed, POLICIES.index(policy), 1])
    tenants = chance.integers(0, 3, n)
    discipline = random_discipline(policy, generator, chance.choice([None, 0.0, 30.0]))
    return trace, predictions, classes, tenants, discipline, engine, cost


def plain(
    trace: Trace,
    predictions: np.ndarray,
    classes: np.ndarray,
    tenants: np.ndarray,
    discipline: Discipline,
    engine: EngineSettings,
    cost: StepCost,
) -> list[Job]:
    blocks = engine.blocks(int((trace.prompt_tokens + trace.output_tokens).max()))
    table = new_table(len(trace))
    jobs = []
    for i, row in enumerate(table.view(np.recarray)):
        row.state, row.arrival_index = WAITING, i
        row.predicted = int(discipline.needs_predictions)  # as whoever fills rows has it
        row.priority, row.arrival_s = classes[i], trace.arrival_s[i]
        row.tenant = tenants[i]
        row.prompt_tokens = trace.prompt_tokens[i]
        if discipline.needs_predictions:
            for name, value in zip(PREDICTION, predictions[i], strict=True):
                row[name] = value
        row.initial = row.expected
        row.remaining = row.expected
        jobs.append(Job(i, row, int(trace.output_tokens[i])))
    limits = limits_of(engine, blocks, shares=False).view(np.recarray)[0]
    PlainEngine(discipline, limits, blocks, cost.terms, table).run(jobs)
    return jobs


def assert_same(jobs: list[Job], simulated: Simulation) -> None:
    for job, served in zip(jobs, simulated.requests, strict=True):
        arrival_s = served["arrival_s"]
        start, end = simulated.token_offsets[job.index : job.index + 2]
        times = simulated.token_times[start:end]
        assert served["scheduled_s"] == pytest.approx(job.started, abs=1e-9)
        assert served["finish_s"] == pytest.approx(job.tokens[-1], abs=1e-9)
        assert times == pytest.approx(np.array(job.tokens) - arrival_s, rel=1e-5)
        assert served["preemptions"] == job.row.preemptions


@pytest.mark.parametrize("policy", POLICIES)
def test_schedules_are_identical(policy: str) -> None:
    require_identical(policy, range(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_many_schedules_are_identical(policy: str) -> None:
    require_identical(policy, range(QUICK, ALL))


def require_identical(policy: str, seeds: range) -> None:
    for seed in seeds:
        trace, predictions, classes, tenants, *rest = random_case(policy, seed)
        discipline, engine, cost = rest
        simulated = simulate(
            trace,
            discipline,
            cost,
            engine,
            predictions=predictions,
            priority=classes,
            tenant=tenants,
            token_times=True,
        )
        jobs = plain(trace, predictions, classes, tenants, discipline, engine, cost)
        try:
            assert_same(jobs, simulated)
        except AssertionError as error:
            raise AssertionError(f"{policy}, seed {seed}: {error}") from error


def test_the_reference_reads_the_record_of_the_product() -> None:
    assert {"remaining", "overtaken", "idle_steps"} <= set(REQUEST.names or ())
