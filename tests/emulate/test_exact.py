"""vLLM's engine core in virtual time against the simulator: every request's times are equal.

A thousand workloads: LENGTHWISE_VIRTUAL_ENGINES=100 pytest tests/emulate/test_exact.py
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from lengthwise.emulate.driver import OURS, Asked, Served, open_virtual_engine, virtual_config
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import ROUTERS
from lengthwise.predict.load import PREDICTION, TRUE_TOKENS, Foretold
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.trace import Trace
from tests.support.exact_comparison import assert_same_counts, differences, simulated
from tests.support.virtual_probe import VirtualProbe, random_distributions, said
from tests.support.virtual_replicas import router, serve
from tests.support.virtual_workloads import COST, LONGEST, Workload, random_engine, random_workload

pytest.importorskip("vllm")

ENGINES = int(os.environ.get("LENGTHWISE_VIRTUAL_ENGINES", "8"))  #: engines of random limits
WORKLOADS = int(os.environ.get("LENGTHWISE_VIRTUAL_WORKLOADS", "10"))  #: for each
QUICK = ("round-robin", "predicted-wait")  #: routers: one that knows nothing, and ours


@pytest.mark.parametrize("number", range(ENGINES))
def test_every_request_is_equal(number: int) -> None:
    """First token, end, preemptions and cached tokens, over policies, guards, swaps, blend, scarce
    and ample KV, shared prefixes, watermark, prompts longer than a step, with and without a lag."""
    engine = random_engine(number)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            virtual.use(workload.settings)
            served = virtual.run(workload.asked)
            for one, asked in zip(served, workload.asked, strict=True):
                assert len(one.token_s) == asked.output_tokens
            simulation = simulated(workload, engine)
            gap = differences(served, simulation)
            assert gap < 1e-9, f"engine {engine}, workload {each}: {workload.settings}"
            assert_same_counts(served, simulation)


@pytest.mark.parametrize("number", [1, 4])
def test_classes_in_order_of_arrival_are_equal(number: int) -> None:
    """fcfs within classes, with guards; what predicts nothing looks at no memory to come."""
    engine = random_engine(number)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            settings = {
                "policy": "fcfs",
                "predictor": Foretold.name,
                "client_priority": True,
                "memory_growth": 1.0,
                "max_overtakes": 2,
                "max_wait_s": [None, 0.4][each % 2],
                "starvation_threshold": [None, 6][each // 2 % 2],
            }
            classes = np.random.default_rng(each).integers(-1, 2, len(workload.asked))
            asked = [
                replace(one, priority=int(priority))
                for one, priority in zip(workload.asked, classes, strict=True)
            ]
            workload = replace(workload, asked=asked, classes=classes, settings=settings)
            virtual.use(settings)
            simulation = simulated(workload, engine)
            assert differences(virtual.run(asked), simulation) < 1e-9, f"workload {each}"


@pytest.mark.parametrize("number", [1, 4])
def test_leads_are_equal_where_nothing_is_predicted(number: int) -> None:
    """Whatever a router may know of the requests."""
    engine = random_engine(number)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            settings = {
                "policy": "shortest-prefill-first",
                "predictor": Foretold.name,
                "max_overtakes": [None, 2][each % 2],
                "max_lead": [0.0, 0.5, 2.0][each % 3],
                "client_priority": True,
            }
            workload = replace(workload, settings=settings)
            virtual.use(settings)
            simulation = simulated(workload, engine)
            served = virtual.run(workload.asked)
            assert differences(served, simulation) < 1e-9, f"workload {each}"


def test_a_victim_whose_last_token_is_on_its_way_still_counts() -> None:
    """The scheduler does not know yet that it has ended: a long prefill leaves room for it."""
    engine = EngineSettings(slots=1, token_budget=40, kv_blocks=30, long_prefill_tokens=12, lag=1)
    settings = {"policy": "sjf", "predictor": Foretold.name, "preemption": "greedy"}
    met = 0
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        virtual.use({**settings, "tau_floor": None})
        for tokens in range(1, 20):
            lengths, said = np.array([tokens, 5]), np.array([40.0, 5.0])
            predictions = np.repeat(said[:, None], 5, axis=1)
            asked = [
                Asked([2 + place] * 20, int(length), hints={PREDICTION: row.tolist()})
                for place, (length, row) in enumerate(zip(lengths, predictions, strict=True))
            ]
            asked[1] = replace(asked[1], arrival_s=0.02)
            trace = Trace("two", np.array([0.0, 0.02]), np.full(2, 20), lengths, [], "synthetic")
            both = Workload(trace, asked, predictions, np.zeros(2, np.int64), settings)
            before = virtual.scheduler.counters.admissions
            served = virtual.run(asked)
            assert differences(served, simulated(both, engine)) < 1e-9, f"{tokens} tokens"
            came_back = virtual.scheduler.counters.admissions - before > 2
            met += served[0].preemptions and not came_back
    assert met > 0


def in_sessions(workload: Workload, seed: int) -> Workload:
    """Some requests as later turns of others: at once, or after a while."""
    generator = np.random.default_rng([seed, 4])
    n = len(workload.trace)
    after, delays = np.full(n, -1), np.zeros(n)
    open_turns: list[int] = []
    for place in range(n):
        if open_turns and generator.random() < 0.7:
            after[place] = open_turns.pop(int(generator.integers(len(open_turns))))
            delays[place] = generator.choice([0.0, 0.0, 0.02, 0.5])
        open_turns.append(place)
    asked = [
        each if before < 0 else replace(each, after=int(before), arrival_s=float(delay))
        for each, before, delay in zip(workload.asked, after, delays, strict=True)
    ]
    return replace(
        workload, trace=replace(workload.trace, after=after, delay_s=delays), asked=asked
    )


SESSIONS = int(os.environ.get("LENGTHWISE_VIRTUAL_SESSIONS", "6"))  #: workloads for each engine


@pytest.mark.parametrize("number", range(3))
def test_turns_of_sessions_come_at_the_same_times(number: int) -> None:
    """Each its delay after the last one has ended, whoever is served sooner for it."""
    engine = random_engine(700 + number)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(SESSIONS):
            workload = in_sessions(random_workload(7000 + 10 * number + each, engine), each)
            virtual.use(workload.settings)
            served = virtual.run(workload.asked)
            simulation = simulated(workload, engine)
            sent = np.array([one.sent_s for one in served])
            assert np.abs(sent - simulation.requests["arrival_s"]).max() < 1e-9
            gap = differences(served, simulation)
            assert gap < 1e-9, f"engine {engine}, workload {each}: {workload.settings}"
            assert_same_counts(served, simulation)


def said_too_short(workload: Workload) -> Workload:
    """Predictions by which there is more memory than there is."""
    short = workload.predictions * np.array([1.0, 0.1, 0.1, 0.1, 0.1])
    asked = [
        replace(each, hints={PREDICTION: said.tolist()} if PREDICTION in each.hints else {})
        for each, said in zip(workload.asked, short, strict=True)
    ]
    return replace(workload, predictions=short, asked=asked)


PAUSES = int(os.environ.get("LENGTHWISE_VIRTUAL_PAUSES", "6"))  #: workloads for each engine


@pytest.mark.parametrize("scarce", [False, True])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
def test_pauses_are_equal(lag: int, shares: bool, scarce: bool) -> None:
    """The same pauses at the same steps, whether blocks last or paused requests are freed."""
    engine = EngineSettings(
        slots=3,
        max_seqs=9,
        token_budget=40,
        kv_blocks=30 if scarce else 9 * 17,
        block_size=16,
        prefix_caching=shares,
        lag=lag,
    )
    pauses = freed = 0
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(PAUSES):
            workload = random_workload(5000 + 10 * each, engine)
            more = {
                "policy": ["srpt", "trail", "gittins"][each % 3],
                "predictor": Foretold.name,
                "preemption": ["pays", "greedy"][each // 3 % 2],
                "pausing": True,
                "max_stall_s": [None, 0.2][each % 2],
                "memory_growth": 0.0,
                "max_lead": None if scarce else 1.0,
            }
            workload = replace(workload, settings=workload.settings | more | {"parameters": {}})
            if scarce:
                workload = said_too_short(workload)
            virtual.use(workload.settings)
            before = virtual.scheduler.counters.pauses
            served = virtual.run(workload.asked)
            simulation = simulated(workload, engine)
            assert differences(served, simulation) < 1e-9, f"workload {each}: {workload.settings}"
            assert_same_counts(served, simulation)
            requests = simulation.requests
            assert virtual.scheduler.counters.pauses - before == requests["pauses"].sum()
            pauses += requests["pauses"].sum()
            freed += requests["memory_preemptions"].sum()
    assert pauses > 3
    assert freed > 0 or not scarce


def test_blocks_of_one_that_ends_while_paused_can_be_found_later() -> None:
    """Its last token, which was on its way, completes a block: what is then thrown out first is
    another one. One workload in a thousand notices."""
    engine = EngineSettings(
        slots=1,
        max_seqs=2,
        token_budget=62,
        kv_blocks=33,
        prefix_caching=True,
        watermark=0.05,
        long_prefill_tokens=12,
        lag=1,
    )
    workload = random_workload(394_013, engine)
    settings = {
        "policy": "trail-bert",
        "parameters": {"c": "auto"},
        "predictor": Foretold.name,
        "preemption": "pays",
        "pausing": "auto",
        "max_stall_s": 0.1,
        "max_preemptions": 3,
        "max_overtakes": 2,
        "blend": 0.6,
        "service_time": True,
        "client_priority": True,
        "tau_floor": None,
    }
    workload = replace(workload, settings=settings)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        virtual.use(settings)
        served = virtual.run(workload.asked)
    simulation = simulated(workload, engine)
    assert differences(served, simulation) < 1e-9
    assert_same_counts(served, simulation)
    assert simulation.requests["pauses"].sum() > 0


@pytest.mark.parametrize("scarce", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
def test_looks_are_equal(lag: int, scarce: bool) -> None:
    """The same requests are let in early, put aside and ordered by what a probe read."""
    engine = EngineSettings(
        slots=4,
        max_seqs=24,
        token_budget=60,
        kv_blocks=60 if scarce else 24 * 17,
        block_size=16,
        prefix_caching=bool(lag),
        lag=lag,
    )
    peeks = 0
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        probe = VirtualProbe(virtual)
        for each in range(PAUSES):
            workload = random_workload(7000 + 10 * each, engine)
            more = {
                "policy": ["srpt", "trail", "gittins"][each % 3],
                "predictor": Foretold.name,
                "preemption": ["pays", "greedy"][each // 3 % 2],
                "pausing": True,
                "peek": True,
                "max_stall_s": [None, 0.2][each % 2],
                "max_overtakes": [None, 5][each // 2 % 2],
                "memory_growth": 0.0,
            }
            workload = replace(workload, settings=workload.settings | more | {"parameters": {}})
            likely = random_distributions(workload.trace.output_tokens, each)
            probe.expect(likely)
            virtual.use(workload.settings)
            before = virtual.scheduler.counters.peeks
            served = virtual.run(workload.asked)
            simulation = simulated(workload, engine, probe=said(likely, workload.predictions))
            assert differences(served, simulation) < 1e-9, f"workload {each}: {workload.settings}"
            assert_same_counts(served, simulation)
            looked = virtual.scheduler.counters.peeks - before
            assert looked == simulation.requests["looks"].sum()
            peeks += looked
    assert peeks > 10


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] * (each not in QUICK)) for each in ROUTERS],
)
def test_several_replicas_are_equal(name: str) -> None:
    """Each request goes to the same engine, and is served there in the same way, with pauses."""
    number = 100 + ROUTERS.index(name)
    limits = random_engine(number)
    limits = replace(limits, slots=min(limits.slots, 2), max_seqs=6)
    pauses = 0
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(open_virtual_engine(COST, limits, longest=LONGEST, scheduler=OURS))
            for _ in range(3)
        ]
        for seed in range(WORKLOADS):
            workload = random_workload(1000 * number + seed, limits)
            if seed % 2 and workload.settings["policy"] != "fcfs":
                often = {"preemption": "greedy", "pausing": "auto"}
                workload = replace(workload, settings=workload.settings | often)
            # Whole numbers, whose sums do not depend on their order.
            predictions = np.nan_to_num(workload.predictions, nan=9.0)
            expected = predictions[:, 1] = np.maximum(np.round(predictions[:, 1]), 1.0)
            workload = replace(workload, predictions=predictions)
            asked = [
                replace(each, hints={PREDICTION: prediction.tolist()})
                for each, prediction in zip(workload.asked, predictions, strict=True)
            ]
            for replica in replicas:
                replica.use(workload.settings)
            route = router(
                name,
                expected,
                seed,
                len(replicas),
                limits.slots,
                workload.settings["policy"] != "fcfs",
            )
            served = serve(replicas, asked, route)
            simulation = simulated(workload, limits, replicas=len(replicas), router=name, seed=seed)
            gap = differences(served, simulation)
            assert_same_counts(served, simulation)
            assert gap < 1e-9, f"{name}, engines {limits}, workload {seed}: {workload.settings}"
            pauses += simulation.requests["pauses"].sum()
    assert pauses > 0


@pytest.mark.parametrize("lag", [0, 1])
def test_stock_vllm_is_equal_to_fcfs(lag: int) -> None:
    """Its own scheduler, which knows nothing of us."""
    engine = replace(random_engine(7), lag=lag)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=None) as virtual:
        assert not hasattr(virtual.scheduler, "counters")
        for seed in range(WORKLOADS):
            workload = random_workload(seed, engine)
            served = virtual.run([replace(each, priority=0) for each in workload.asked])
            simulation = simulate(workload.trace, make_discipline("fcfs"), COST, engine)
            assert differences(served, simulation) < 1e-9


@pytest.mark.parametrize("lag", [0, 1])
def test_the_whole_engine_is_equal(lag: int) -> None:
    """vLLM's LLMEngine, its processing of inputs and outputs included, as a user would step it."""
    engine = replace(random_engine(4), lag=lag)
    workload = random_workload(4000, engine)
    with virtual_config(COST, engine, longest=LONGEST, settings=workload.settings) as config:
        whole = LLMEngine.from_vllm_config(config)
        try:
            served = step_whole_engine(whole, workload)
        finally:
            whole.engine_core.shutdown()
    assert differences(served, simulated(workload, engine)) < 1e-9


def step_whole_engine(whole: Any, workload: Workload) -> list[Served]:
    core = whole.engine_core.engine_core
    clock = core.model_executor.pace.clock
    core.scheduler.begin_anew(clock.now)
    served = {str(place): Served() for place in range(len(workload.asked))}
    coming = list(enumerate(workload.asked))
    while coming or whole.has_unfinished_requests() or core.scheduler.has_requests():
        if not (whole.has_unfinished_requests() or core.scheduler.has_requests()):
            clock.wait_until(coming[0][1].arrival_s)
        while coming and coming[0][1].arrival_s <= clock.now():
            place, asked = coming.pop(0)
            parameters = SamplingParams(
                max_tokens=LONGEST,
                detokenize=False,
                extra_args={**asked.hints, TRUE_TOKENS: asked.output_tokens},
            )
            prompt = {"prompt_token_ids": list(asked.prompt_ids)}
            whole.add_request(str(place), prompt, parameters, priority=asked.priority)
        for output in whole.step():
            one = served[output.request_id]
            tokens = len(output.outputs[0].token_ids)
            one.token_s.extend([clock.now()] * (tokens - len(one.token_s)))
    return list(served.values())
