"""vLLM's engine core in virtual time against the simulator: every request's times are equal.

A thousand workloads: LENGTHWISE_VIRTUAL_ENGINES=100 pytest tests/test_virtual_exact.py
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("vllm")

from lengthwise.emulate.driver import OURS, Served, open_virtual_engine
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.vllm.settings import parse_settings
from virtual_workloads import COST, LONGEST, Workload, random_engine, random_workload

ENGINES = int(os.environ.get("LENGTHWISE_VIRTUAL_ENGINES", "8"))  #: engines of random limits
WORKLOADS = int(os.environ.get("LENGTHWISE_VIRTUAL_WORKLOADS", "10"))  #: for each


def simulated(workload: Workload, engine: EngineSettings) -> Simulation:
    settings = parse_settings(workload.settings)
    discipline = make_discipline(**settings.discipline_arguments(engine.slots))
    return simulate(
        workload.trace,
        discipline,
        COST,
        engine,
        predictions=workload.predictions if discipline.needs_predictions else None,
    )


def differences(served: list[Served], simulation: Simulation) -> float:
    """The largest, in s, of any first token or end."""
    first = np.array([one.first_token_s for one in served])
    last = np.array([one.finish_s for one in served])
    requests = simulation.requests
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
