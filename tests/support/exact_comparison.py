"""A schedule of vLLM in virtual time beside the simulator's."""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.emulate.driver import Served
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import parse_settings
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.simulation import Simulation, simulate
from tests.support.virtual_workloads import COST, Workload


def simulated(workload: Workload, engine: EngineSettings, **more: Any) -> Simulation:
    settings = parse_settings(workload.settings)
    discipline = make_discipline(**settings.discipline_arguments(engine.slots))
    # Also where no policy asks: a router may.
    predictions, classes = workload.predictions, workload.classes
    return simulate(
        workload.trace,
        discipline,
        COST,
        engine,
        predictions=predictions,
        priority=classes,
        **more,
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


def assert_same_counts(served: list[Served], simulation: Simulation) -> None:
    requests = simulation.requests
    preemptions = requests["preemptions"] + requests["memory_preemptions"]
    assert [one.preemptions for one in served] == preemptions.tolist()
    assert [one.cached_tokens for one in served] == requests["cached_tokens"].tolist()
