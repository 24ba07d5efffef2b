"""Deadlines in virtual time: vLLM's engine core and the simulator serve them alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vllm")

from lengthwise.emulate.driver import OURS, open_virtual_engine
from lengthwise.predict.load import PREDICTION, Foretold
from lengthwise.predict.prediction import TTFT_DEADLINE_MS
from tests.support.exact_comparison import assert_same_counts, differences, simulated
from tests.support.virtual_workloads import COST, LONGEST, random_engine, random_workload

WORKLOADS = 10


@pytest.mark.parametrize("number", [3, 4])
def test_every_request_is_equal(number: int) -> None:
    engine = random_engine(number)
    met = asked_for = 0
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            generator = np.random.default_rng([number, each])
            milliseconds = generator.choice([0, 0, 50, 200, 1000], len(workload.asked))
            settings = {
                "policy": "deadline",
                "predictor": Foretold.name,
                "tau_floor": None,
                "client_priority": True,
                "max_overtakes": [None, 5][int(generator.integers(2))],
                "preemption": ["never", "pays", "greedy"][int(generator.integers(3))],
                "service_time": bool(generator.integers(2)),
            }
            predictions = np.nan_to_num(workload.predictions, nan=9.0)
            asked = [
                replace(
                    one,
                    hints={PREDICTION: said.tolist(), TTFT_DEADLINE_MS: int(due)},
                )
                for one, said, due in zip(workload.asked, predictions, milliseconds, strict=True)
            ]
            workload = replace(workload, predictions=predictions, settings=settings)
            virtual.use(settings)
            served = virtual.run(asked)
            simulation = simulated(workload, engine, deadline_s=milliseconds / 1e3)
            assert differences(served, simulation) < 1e-9, (number, each, settings)
            assert_same_counts(served, simulation)
            due = milliseconds > 0
            asked_for += int(due.sum())
            met += int((simulation.ttft_s[due] <= milliseconds[due] / 1e3).sum())
    assert 0 < met < asked_for
