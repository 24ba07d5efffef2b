"""Shadow mode: stock vLLM's schedule, and a gain foretold that the simulator agrees with.

A thousand workloads: LENGTHWISE_VIRTUAL_ENGINES=100 pytest tests/vllm/test_shadow.py
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from lengthwise.advise.foregone import Window, foretell_gain
from lengthwise.emulate.driver import OURS, Served, open_virtual_engine
from lengthwise.errors import InputError
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import parse_settings
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.vllm.shadow import in_parts
from tests.support.virtual_workloads import COST, LONGEST, Workload, random_engine, random_workload

ENGINES = int(os.environ.get("LENGTHWISE_VIRTUAL_ENGINES", "6"))  #: engines of random limits
WORKLOADS = int(os.environ.get("LENGTHWISE_VIRTUAL_WORKLOADS", "10"))  #: for each


def schedule(served: list[Served]) -> list[tuple[list[float], int, int]]:
    """All that clients can see of it."""
    return [(one.token_s, one.preemptions, one.cached_tokens) for one in served]


@pytest.mark.parametrize(
    "number",
    [0, 1, *(pytest.param(number, marks=pytest.mark.slow) for number in range(2, ENGINES))],
)
def test_the_schedule_is_that_of_stock_vllm(number: int) -> None:
    """Any policy with any guards, in shadow, beside vLLM's own scheduler: each token comes at the
    same time, to the last bit, with as many preemptions and as much of the prompt cached."""
    engine = random_engine(5000 + number)
    workloads = [random_workload(1000 * number + each, engine) for each in range(WORKLOADS)]
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=None) as virtual:
        stock = [schedule(virtual.run(workload.asked)) for workload in workloads]
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        for workload, expected in zip(workloads, stock, strict=True):
            virtual.use({**workload.settings, "shadow": True})
            assert schedule(virtual.run(workload.asked)) == expected, workload.settings
        if any(workload.settings["policy"] != "fcfs" for workload in workloads):
            assert virtual.scheduler.counters.predictions > 0  # made all the same
        assert virtual.scheduler.counters.preemptions == 0
        assert virtual.scheduler.counters.switched_off == 0


def crowded(seed: int, engine: EngineSettings) -> Workload:
    """More requests than slots, so that there is something to gain."""
    for attempt in range(1000):
        workload = random_workload(100_000 + 1000 * seed + attempt, engine)
        policy = workload.settings["policy"]
        if len(workload.asked) > 200 and policy in ("srpt", "sjf", "hrrn", "ltr"):
            return workload
    raise AssertionError("no such workload")


def gain(workload: Workload, engine: EngineSettings) -> float:
    """What the simulator says of the switch, given the true costs of a step."""
    settings = parse_settings(workload.settings)
    means: list[float] = []
    for arguments in ({"policy": "fcfs"}, settings.discipline_arguments(engine.slots)):
        simulation = simulate(
            workload.trace,
            make_discipline(**arguments),
            COST,
            engine,
            predictions=workload.predictions,
            priority=workload.classes if arguments != {"policy": "fcfs"} else None,
        )
        means.append(float(simulation.e2el_s.mean()))
    return means[0] / means[1]


@pytest.mark.parametrize("number", range(4))
def test_the_gain_foretold_is_the_simulators(number: int) -> None:
    """Step costs are fitted to the engine's own steps; prompts share what vLLM's hashes say."""
    engine = replace(random_engine(number), slots=4, token_budget=160, lag=number % 2)
    workload = crowded(number, engine)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        virtual.use({**workload.settings, "shadow": True})
        virtual.run(workload.asked)
        window = json.loads(b"".join(in_parts(virtual.scheduler._active.shadow.window())))
    estimate = foretell_gain(Window(**{**window, "engine": EngineSettings(**window["engine"])}))
    assert estimate["gain_mean"] == pytest.approx(gain(workload, engine), rel=0.05)
    assert abs(estimate["replay_error"]) < 0.05
    assert estimate["requests"] >= len(workload.asked) // 2


def test_a_window_is_encoded_a_prompt_at_a_time() -> None:
    """Not all of it in one call, for which the engine's thread would have to wait."""
    window = {
        "discipline": {"policy": "srpt", "parameters": {}},
        "classes_decide": False,
        "requests": {
            "arrival_s": [0.5] * 100,
            "predictions": [None, [1.0] * 5] * 50,
            "blocks": [[2**62 + place] * 1000 for place in range(99)] + [[]],
        },
        "steps": {},
        "nobody": {"blocks": []},
    }
    parts = list(in_parts(window))
    assert json.loads(b"".join(parts)) == window
    assert max(map(len, parts)) < 25_000


def test_the_replay_is_a_process_of_its_own() -> None:
    engine = replace(random_engine(1), slots=4, token_budget=160)
    workload = crowded(9, engine)
    with open_virtual_engine(COST, engine, longest=LONGEST, scheduler=OURS) as virtual:
        virtual.use({**workload.settings, "shadow": True})
        virtual.run(workload.asked)
        shadow = virtual.scheduler._active.shadow
        assert np.isnan(shadow.gauges()["shadow_gain_mean"])
        shadow.look()
        assert shadow.estimate["gain_mean"] == shadow.gauges()["shadow_gain_mean"]
        assert virtual.scheduler._report.status()["shadow_estimate"] == shadow.estimate
        shadow.clear()
        shadow.look()  # too few requests: said, and nothing else
        assert "error" in shadow.estimate
        assert np.isnan(shadow.gauges()["shadow_gain_mean"])


def test_a_window_begins_where_the_engine_was_empty() -> None:
    n = 200
    arrival_s = [float(place) for place in range(n)]
    finish_s = [place + (0.5 if place >= 40 else 60.0) for place in range(n)]
    columns: dict[str, list[Any]] = {
        "arrival_s": arrival_s,
        "finish_s": finish_s,
        "prompt_tokens": [5] * n,
        "output_tokens": [5] * n,
        "priority": [0] * n,
        "tenant": [0] * n,
        "predictions": [None] * n,
        "blocks": [[]] * n,
    }
    window = Window({"policy": "hrrn"}, EngineSettings(slots=2), False, False, columns)
    estimate = foretell_gain(window, COST)
    assert estimate["requests"] == n - 99  # the last of the slow ones ends at 99 s
    assert estimate["gain_mean"] == pytest.approx(1.0)
    few = {name: column[:20] for name, column in columns.items()}
    with pytest.raises(InputError, match="20 requests were seen"):
        foretell_gain(replace(window, requests=few), COST)
    with pytest.raises(InputError, match="timed steps"):
        foretell_gain(replace(window, steps={name: [] for name in window_steps()}))


def window_steps() -> tuple[str, ...]:
    from lengthwise.simulate.engine import WORK

    return ("duration_s", *WORK)
