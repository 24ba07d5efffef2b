"""vLLM's engine core in virtual time against the simulator: every request's times are equal.

A thousand workloads: LENGTHWISE_VIRTUAL_ENGINES=100 pytest tests/test_virtual_exact.py
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from lengthwise.emulate.driver import OURS, Served, open_virtual_engine
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.baselines import PREDICTION
from lengthwise.simulate.cluster import ROUTERS
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.vllm.settings import parse_settings
from virtual_replicas import router, serve
from virtual_workloads import COST, LONGEST, Workload, random_engine, random_workload

ENGINES = int(os.environ.get("LENGTHWISE_VIRTUAL_ENGINES", "8"))  #: engines of random limits
WORKLOADS = int(os.environ.get("LENGTHWISE_VIRTUAL_WORKLOADS", "10"))  #: for each


def simulated(workload: Workload, engine: EngineSettings, **more: Any) -> Simulation:
    settings = parse_settings(workload.settings)
    discipline = make_discipline(**settings.discipline_arguments(engine.slots))
    return simulate(
        workload.trace,
        discipline,
        COST,
        engine,
        predictions=workload.predictions if discipline.needs_predictions else None,
        priority=workload.classes,
        **more,
    )


def differences(served: list[Served], simulation: Simulation) -> float:
    """The largest, in s, of any first token or end."""
    first = np.array([one.first_token_s for one in served])
    last = np.array([one.finish_s for one in served])
    requests = simulation.requests
    preemptions = requests["preemptions"] + requests["memory_preemptions"]
    assert [one.preemptions for one in served] == preemptions.tolist()
    assert [one.cached_tokens for one in served] == requests["cached_tokens"].tolist()
    return float(
        max(
            np.abs(first - requests["first_token_s"]).max(),
            np.abs(last - requests["finish_s"]).max(),
        )
    )


@pytest.mark.parametrize("number", range(ENGINES))
def test_every_request_is_equal(number: int) -> None:
    """First token and end, over policies, guards, greedy swaps, blend, scarce and ample KV, shared
    prefixes, watermark, prompts longer than a step, with and without a lag."""
    engine = random_engine(number)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            virtual.use(workload.settings)
            served = virtual.run(workload.asked)
            for one, asked in zip(served, workload.asked, strict=True):
                assert len(one.token_s) == asked.output_tokens
            gap = differences(served, simulated(workload, engine))
            assert gap < 1e-9, f"engine {engine}, workload {each}: {workload.settings}"


@pytest.mark.parametrize("name", ROUTERS)
def test_several_replicas_are_equal(name: str) -> None:
    """Each request goes to the same engine, and is served there in the same way."""
    number = 100 + ROUTERS.index(name)
    limits = random_engine(number)
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(open_virtual_engine(COST, limits, longest=LONGEST, scheduler=OURS))
            for _ in range(3)
        ]
        for seed in range(WORKLOADS):
            workload = random_workload(1000 * number + seed, limits)
            # Sums of whole numbers do not depend on their order.
            expected = np.round(workload.predictions[:, 1])
            workload.predictions[:, 1] = expected
            for asked, prediction in zip(workload.asked, workload.predictions, strict=True):
                asked.hints[PREDICTION] = prediction.tolist()  # type: ignore[index]
            for replica in replicas:
                replica.use(workload.settings)
            served = serve(replicas, workload.asked, router(name, expected, seed, len(replicas)))
            simulation = simulated(
                workload, limits, replicas=len(replicas), router=name, seed=seed
            )
            gap = differences(served, simulation)
            assert gap < 1e-9, f"{name}, engines {limits}, workload {seed}: {workload.settings}"
