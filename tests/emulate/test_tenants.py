"""Tenants in virtual time: vLLM's engine core and the simulator serve them alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vllm")

from lengthwise.emulate.driver import OURS, open_virtual_engine
from lengthwise.predict.prediction import TENANT
from tests.support.exact_comparison import assert_same_counts, differences, simulated
from tests.support.virtual_workloads import COST, LONGEST, random_engine, random_workload

WORKLOADS = 12


@pytest.mark.parametrize("number", [3, 4, 6])
def test_every_request_is_equal(number: int) -> None:
    engine = random_engine(number)
    behind = 0
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for each in range(WORKLOADS):
            workload = random_workload(1000 * number + each, engine)
            generator = np.random.default_rng([number, each])
            tenants = generator.choice([0, 0, 0, 1, 2], len(workload.asked))
            asked = [
                replace(one, hints={**one.hints, TENANT: "abc"[tenant]})
                for one, tenant in zip(workload.asked, tenants, strict=True)
            ]
            lead = float(generator.choice([0.0, 100.0, 1000.0]))
            settings = {**workload.settings, "max_tenant_lead": lead}
            workload = replace(workload, settings=settings)
            virtual.use(settings)
            served = virtual.run(asked)
            simulation = simulated(workload, engine, tenant=tenants)
            assert differences(served, simulation) < 1e-9, (number, each, settings)
            assert_same_counts(served, simulation)
            without = replace(workload, settings={**settings, "max_tenant_lead": None})
            behind += int(differences(served, simulated(without, engine)) > 1e-9)
    assert behind > 0  # it matters who is whose
